"""Model folder of a run: weights as safetensors, config, model card, sample grid, ONNX."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from latentfaces import __version__
from latentfaces.autoencoder import DiffusersVAE, PretrainedVAE
from latentfaces.errors import UserError, missing_extra
from latentfaces.evaluation import save_grid
from latentfaces.export.card import model_card, without_path
from latentfaces.export.onnx import write_onnx
from latentfaces.model_folder import CONFIG, FORMAT, WEIGHTS
from latentfaces.pipeline import FacePipeline
from latentfaces.run import GUIDE, LABELS, Run, config_of

PARTS = ("autoencoder", "denoiser", "conditioning")
"""Nodes of `model` in a run's config from which a pipeline is built."""
NUM_SHOWN, COLUMNS = 16, 8


def export(run: Run, to: Path) -> Path:
    """Write the model folder of a run.

    It has what `FacePipeline.load` loads: the weights of the tuned average, the tuned guidance and sampler.

    Args:
        run: the run, of either stage.
        to: new or empty folder, which appears when it is complete.

    Raises:
        UserError: the folder has files, or the run has no weights.
    """
    pipeline = FacePipeline.load(run, device="cpu")
    with atomic_folder(to) as folder:
        write_vae(pipeline, folder)
        if pipeline.denoiser is not None:
            save(pipeline.denoiser, folder, "best_denoiser")
        if pipeline.guide is not None:
            save(pipeline.guide, folder, GUIDE)
        if (run.folder / LABELS).exists():
            shutil.copyfile(run.folder / LABELS, folder / LABELS)
        (folder / CONFIG).write_text(json.dumps(config_for(run, pipeline), indent=1))
        if pipeline.denoiser is not None:
            save_grid(pipeline.generate(NUM_SHOWN, seed=0), folder / "grid.png", COLUMNS)
        write_onnx(pipeline, folder)
        (folder / "README.md").write_text(model_card(run, pipeline, sorted(path.name for path in folder.iterdir())))
    return to


@contextmanager
def atomic_folder(to: Path) -> Iterator[Path]:
    """Yield a folder that gets the name `to` when it is complete. After an error nothing is left."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"to={to} already exists. Choose another folder.")
    if to.exists() and to.samefile(Path.cwd()):
        raise UserError(f"to={to} is the current folder. Choose another.")
    partial = to.absolute().with_name(f"{to.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.replace(to)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def save(module: nn.Module, folder: Path, name: str) -> None:
    """Write a state dict."""
    try:
        from safetensors import torch as safetensors
    except ImportError:
        raise missing_extra("latentfaces-export", "hub") from None
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    (folder / f"{WEIGHTS[name]}.safetensors").write_bytes(safetensors.save(state, {"format": "pt"}))


def write_vae(pipeline: FacePipeline, folder: Path) -> None:
    """Write the VAE. One of diffusers becomes a folder that diffusers reads."""
    if isinstance(pipeline.vae, DiffusersVAE):
        pipeline.vae.model.save_pretrained(folder / "vae")
    else:
        save(pipeline.vae, folder, "best_vae")


def config_for(run: Run, pipeline: FacePipeline) -> dict[str, Any]:
    """Return what rebuilds the pipeline. It has no path of this machine."""
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": __version__,
        "stage": run.stage,
        "name": run.config.get("name"),
        "data": {"resolution": pipeline.resolution},
        "model": {part: run.config["model"][part] for part in PARTS if part in run.config["model"]},
    }
    if isinstance(pipeline.vae, PretrainedVAE):
        autoencoder = config["model"]["autoencoder"]
        config["model"]["autoencoder"] = {**autoencoder, "source": without_path(pipeline.vae.source)}
    if isinstance(pipeline.vae, DiffusersVAE):  # which cannot hold them
        config["latents"] = {key: pipeline.vae.get_buffer(key).tolist() for key in ("latent_mean", "latent_std")}
    if pipeline.denoiser is not None:
        config["sampling"] = {"guidance": config_of(pipeline.guidance), "sampler": config_of(pipeline.sampler)}
    return config
