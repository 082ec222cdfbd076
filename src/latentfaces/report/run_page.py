"""A run as one page."""

import platform
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from latentfaces.errors import UserError
from latentfaces.evaluation import TensorValues, plot_losses
from latentfaces.report.page import REPORT, as_data, embedded, write_page
from latentfaces.run import CONFIG, RESULT, open_run

KINDS = {"vae": "stage 1, a VAE", "ldm": "stage 2, a latent diffusion model"}
NUM_PREVIEWS = 3


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run's folder from what is there: also of a run that has not ended yet.

    Args:
        folder: of the run.

    Returns:
        The page, with all its pictures inside.

    Raises:
        UserError: the folder is no run.
    """
    run = open_run(folder)
    result: dict[str, Any] = run.result() if run.finished else {}
    verdict, healthy = result.pop("verdict", None), result.pop("healthy", True)
    tensors = tensor_values(run.folder)
    return write_page(
        run.folder / REPORT,
        "run.html.j2",
        name=run.folder.name,
        kind=KINDS.get(run.stage, run.stage),
        state="finished" if run.finished else "not finished",
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        verdict=verdict,
        healthy=healthy,
        command=command(run.folder),
        figures=[(key, f"{value:.5g}") for key, value in result.items() if not key.startswith("health/")],
        health=[(key[7:], f"{value:.4g}") for key, value in result.items() if key.startswith("health/")],
        curves=curves(run.folder),
        previews=[(path.stem.replace("_", " "), as_data(path.read_bytes())) for path in previews(run.folder)],
        tensors=embedded(tensors.plot()) if tensors else None,
        tensor_table=tensors.table() if tensors else None,
        next_commands=next_commands(run.folder, run.stage),
        config=(run.folder / CONFIG).read_text(),
        environment=f"torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}",
    )


def command(folder: Path) -> str:
    """What was typed, as far as the run remembers."""
    path = folder / ".hydra" / "overrides.yaml"
    overrides = yaml.safe_load(path.read_text()) if path.exists() else []
    return " ".join(["python train.py", *(shlex.quote(override) for override in overrides)])


def next_commands(folder: Path, stage: str) -> list[str]:
    """How to go on, and how to use what there is."""
    if not (folder / RESULT).exists():
        return [f"{command(folder)} resume=true"]
    if stage == "vae":
        return [
            f"python sample.py run={shlex.quote(str(folder))} task=reconstruct",
            f"python train.py model=ldm vae={shlex.quote(str(folder))}",
        ]
    return [f"python sample.py run={shlex.quote(str(folder))}", "python sample.py --help"]


def curves(folder: Path) -> str | None:
    """The plot of all logged values, if any are there."""
    try:
        return embedded(plot_losses(folder / "metrics.csv"))
    except (OSError, UserError):
        return None


def tensor_values(folder: Path) -> TensorValues | None:
    """The statistics of tensors, if the run kept some."""
    path = folder / "tensors.csv"
    values = TensorValues.read(path) if path.exists() else None
    return values if values is not None and values.rows else None


def previews(folder: Path) -> list[Path]:
    """First, middle and last preview."""
    there = sorted((folder / "images").glob("step_*.png"))
    places = {round(share * (len(there) - 1) / (NUM_PREVIEWS - 1)) for share in range(NUM_PREVIEWS)} if there else set()
    return [there[place] for place in sorted(places)]
