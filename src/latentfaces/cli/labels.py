"""Labels of a training of stage 2: from the data to the network and the run folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf, open_dict

from latentfaces.diffusion import Conditioning
from latentfaces.errors import UserError
from latentfaces.files import atomic_write
from latentfaces.run import CONFIG, LABELS, Run, build


def has_labels(cfg: DictConfig) -> bool:
    """Return whether this training conditions on labels.

    Raises:
        UserError: an override has no effect without labels.
    """
    if cfg.stage != "ldm":
        return False
    if cfg.model.conditioning is not None:
        raise UserError(
            "model.conditioning is filled by train.py. Choose labels with data.labels=... and model.labels."
        )
    if cfg.model.labels is not None and cfg.data.get("labels") is None:
        raise UserError("model.labels has no effect without data.labels=... Add it, e.g. data.labels=labels.csv.")
    return cfg.data.get("labels") is not None


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
    config = Path(cfg.run_dir) / CONFIG
    if cfg.resume.lower() != "false" and config.exists():
        before: Any = OmegaConf.load(config)
        if OmegaConf.select(before, "model.conditioning") != cfg.model.conditioning:
            raise UserError(f"data.labels={cfg.data.labels} has changed since {cfg.run_dir} started. Restore it.")


def drop_other_labels(network: Any, conditioning: Conditioning, init_run: Run) -> None:
    """Initialize the layer of the condition again if its weights are of a run with other labels, of the same size."""
    before = build(init_run.config["model"].get("conditioning"))
    schemas = [[(label.name, *label.choices) for label in c.labels] if c else [] for c in (before, conditioning)]
    if schemas[0] != schemas[1]:
        network.embed_label.reset_parameters()


def save_labels(rows: np.ndarray, run_dir: str) -> None:
    """Write the labels (N, L) of the training images into the run folder."""
    with atomic_write(Path(run_dir) / LABELS) as file:
        np.save(file, rows)
