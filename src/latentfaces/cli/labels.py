"""Labels of a training of stage 2: from the data to the network and the run folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, open_dict

from latentfaces.cli.resume import resumed_run
from latentfaces.config.overrides import overridden_keys, plain
from latentfaces.data.arrays import open_array
from latentfaces.diffusion import Conditioning
from latentfaces.errors import UserError
from latentfaces.files import atomic_write
from latentfaces.ranks import is_main_process
from latentfaces.run import LABELS


def has_labels(cfg: DictConfig) -> bool:
    """Return whether this training conditions on labels.

    Raises:
        UserError: an override has no effect without labels, or with this stage.
    """
    wanted = cfg.data.get("labels")
    if wanted is not None and cfg.stage == "vae":
        raise UserError(f"data.labels={wanted} has no effect with model=vae. Give it to model=ldm.")
    if wanted is None and any(key.startswith("data.label_types") for key in overridden_keys()):
        raise UserError("data.label_types has no effect without data.labels=... Add it, e.g. data.labels=labels.csv.")
    if cfg.stage == "vae":
        return False
    if cfg.model.labels is not None and wanted is None:
        raise UserError("model.labels has no effect without data.labels=... Add it, e.g. data.labels=labels.csv.")
    return wanted is not None


def add_conditioning(cfg: DictConfig, data: Any) -> None:
    """Set `model.conditioning` and the size of the network's condition from the labels of the packed data.

    Raises:
        UserError: at a resume, the labels differ from those of the run.
    """
    labels = data.use_labels(cfg.model.labels).labels
    conditioning = Conditioning(labels)
    with open_dict(cfg):
        cfg.model.conditioning = {
            "_target_": "latentfaces.diffusion.Conditioning",
            "labels": [asdict(label) for label in labels],
            "dropout": conditioning.dropout,
            "joint_dropout": conditioning.joint_dropout,
        }
        cfg.model.denoiser.network.label_channels += conditioning.size  # in addition to those of the augmentation
    run = resumed_run(cfg)
    if run is not None and run.config["model"].get("conditioning") != plain(cfg.model.conditioning):
        raise UserError(f"data.labels={cfg.data.labels} has changed since {cfg.run_dir} started. Restore it.")


def save_labels(data: Any, cfg: DictConfig) -> Any:
    """Write the labels of the training images into the run folder, and return them as a tensor (N, L).

    Raises:
        UserError: at a resume, the labels differ from those of the run.
    """
    import torch

    rows, path = data.label_table.values[data.pack().train_indices], Path(cfg.run_dir) / LABELS
    resumed = resumed_run(cfg) is not None and cfg.resume.lower() != "force"
    if resumed and path.exists() and not np.array_equal(open_array(path), rows, equal_nan=True):
        raise UserError(
            f"Values of data.labels={cfg.data.labels} have changed since {cfg.run_dir} started. Restore them, use "
            "resume=force to continue with the new ones, or choose another name=..."
        )
    if is_main_process():
        with atomic_write(path) as file:
            np.save(file, rows)
    return torch.from_numpy(rows)
