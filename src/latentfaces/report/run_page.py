"""A run as one page."""

import json
import platform
import shlex
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
import yaml

from latentfaces.evaluation import TensorValues
from latentfaces.evaluation.panels import SECTIONS, Best, Panel, best_validation, panels, read_curves, sheet
from latentfaces.report.page import REPORT, as_data, embedded, write_page
from latentfaces.run import CONFIG, Run, command, open_run, overrides_of, resume_command, train_program

KINDS = {"vae": "stage 1, a VAE", "ldm": "stage 2, a latent diffusion model"}
DEFAULTS = Path(".hydra") / "defaults.yaml"
NUM_PREVIEWS = 3
OWN = ("name", "run_dir", "pack", "logger.wandb")
"""Keys that differ in every run, by their beginnings."""
UNITS = {"minutes": "minutes of training", "peak_memory_gb": "GB of memory at most", "steps": "steps"}
MEANINGS = {
    "fid": "Frechet distance of Inception features to held-out photos: lower is better",
    "frechet_distance": "distance of feature means and covariances to held-out photos: lower is better",
    "kernel_distance": "the same by a kernel, unbiased: lower is better, 0 is as good as real",
    "precision": "fraction of faces that look like a real one: higher is better",
    "recall": "fraction of held-out photos that look like a face: low where variety is missing",
    "duplicates": "fraction of faces closer to another face than 99 % of held-out photos are: 0.01 is expected",
    "memorised": "fraction of faces closer to a training photo than 99 % of held-out photos are: 0.01 is expected",
}
"""Metrics of task=evaluate, in the order of the page."""
Pictures = list[tuple[str, str]]
"""Captions, and addresses that hold the pictures."""


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
    result = run.result()
    verdict, healthy = result.pop("verdict", None), result.pop("healthy", True)
    metrics = run.folder / "metrics.csv"
    curves = read_curves(metrics) if metrics.exists() else {}
    best, shown = best_validation(curves), panels(curves)
    tensors = tensor_values(run.folder)
    return write_page(
        run.folder / REPORT,
        "run.html.j2",
        name=run.folder.name,
        stage=run.stage,
        kind=KINDS.get(run.stage, run.stage),
        state="finished" if run.finished else "not finished",
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        verdict=verdict,
        healthy=healthy,
        command=command(run.folder),
        figures=[(UNITS.get(k, k), f"{v:.4g}") for k, v in result.items() if not k.startswith("health/")],
        health=[(key[7:], f"{value:.4g}") for key, value in result.items() if key.startswith("health/")],
        best=best,
        curves=[
            (section, drawn([panel for panel in shown if panel.section == section], best))
            for section in SECTIONS[:-1]
            if any(panel.section == section for panel in shown)
        ],
        health_curves=drawn([panel for panel in shown if panel.section == SECTIONS[-1]], best),
        previews=[(f"step {int(path.stem[5:]):,}", as_data(path.read_bytes())) for path in previews(run.folder)],
        evaluations=evaluations(run.folder),
        tensors=[(title, embedded(figure)) for title, figure in tensors.panels()] if tensors else [],
        tensor_table=tensors.table() if tensors else None,
        next_commands=next_commands(run),
        differences=differences(run.folder, run.config),
        config=(run.folder / CONFIG).read_text(),
        environment=f"torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}",
    )


def drawn(shown: list[Panel], best: Best | None) -> Pictures:
    """Each panel as a picture of its own, so that a narrow screen shows one beside the other or below."""
    pictures = []
    for panel in shown:
        figure, axes = sheet()
        panel.draw(axes[0, 0], best)
        pictures.append((panel.title, embedded(figure)))
    return pictures


def twice(max_time: str) -> str:
    """Double days:hours:minutes:seconds."""
    days, hours, minutes, seconds = map(int, max_time.split(":"))
    length = 2 * timedelta(days, seconds, hours=hours, minutes=minutes)
    return f"{length.days:02}:{length.seconds // 3600:02}:{length.seconds // 60 % 60:02}:{length.seconds % 60:02}"


def next_commands(run: Run) -> list[tuple[str, str]]:
    """Return titles and commands: how to resume the run, and how to use it."""
    folder, stage, trainer = run.folder, run.stage, run.config.get("trainer", {})
    here, again = shlex.quote(str(folder)), resume_command(train_program(), overrides_of(folder), folder)
    if not run.finished:
        return [("Resume", again)]
    steps = run.result().get("steps", 0)
    if trainer.get("max_time") is not None and not 0 < trainer.get("max_steps", -1) <= steps:
        longer = [("Train for longer", f"{again} trainer.max_time={twice(trainer['max_time'])}")]
    else:
        longer = [("Train for longer", f"{again} trainer.max_steps={2 * steps}")] if steps else []
    if stage == "vae":
        return [
            ("Photos it has not seen", f"python sample.py run={here} task=reconstruct"),
            ("Stage 2, for new faces", f"python train.py model=ldm vae={here}"),
            *longer,
        ]
    return [
        ("New faces", f"python sample.py run={here} num_images=64"),
        ("The guidance that suits it", f"python sample.py run={here} task=tune"),
        ("How good they are", f"python sample.py run={here} task=evaluate"),
        *longer,
    ]


def flattened(node: Any, key: str = "") -> dict[str, Any]:
    """A nested config's values by their dotted keys; lists are values."""
    if not isinstance(node, Mapping) or not node:
        return {key: node}
    parts = (flattened(value, f"{key}.{name}" if key else str(name)) for name, value in node.items())
    return {name: value for part in parts for name, value in part.items()}


def differences(folder: Path, config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, value and default of what differs from what the bare command would have taken."""
    path = folder / DEFAULTS
    if not path.exists():
        return []
    own, default = flattened(config), flattened(yaml.safe_load(path.read_text()))
    keys = [key for key in (*own, *(key for key in default if key not in own)) if not key.startswith(OWN)]
    return [(key, written(own, key), written(default, key)) for key in keys if own.get(key) != default.get(key)]


def written(values: Mapping[str, Any], key: str) -> str:
    """A value as a person would type it; nothing where there is none."""
    value = values.get(key, "")
    return value if isinstance(value, str) else json.dumps(value)


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


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Results of task=evaluate in the run's own folder, the last first."""
    found = []
    for path in sorted(folder.glob("samples/*/metrics.json"), key=lambda path: -path.stat().st_mtime):
        told = json.loads(path.read_text())
        real = told.get("training_photos", {})
        rows = [
            (name.replace("_", " "), f"{told[name]:.4g}", f"{real[name]:.4g}" if name in real else "", meaning)
            for name, meaning in MEANINGS.items()
            if name in told
        ]
        found.append({"kind": "pictures", **told, "rows": rows, "folder": path.parent.relative_to(folder)})
    return found
