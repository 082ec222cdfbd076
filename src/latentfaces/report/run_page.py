"""HTML report of a run."""

import json
import platform
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from latentfaces.evaluation import TensorValues
from latentfaces.evaluation.panels import SECTIONS, Best, Panel, best_validation, panels, read_curves, sheet
from latentfaces.evaluation.protocol import RESULT, comparability
from latentfaces.report.page import REPORT, as_data, embedded, format_number, write_page
from latentfaces.run import CONFIG, Run, command, open_run, overrides_of, program, resume_command

KINDS = {"vae": "stage 1, a VAE", "ldm": "stage 2, a latent diffusion model"}
NUM_PREVIEWS = 3
UNITS = {"minutes": "minutes of training", "peak_memory_gb": "GB peak memory", "steps": "steps"}
MEANINGS = {
    "fid": "Frechet distance of Inception features to held-out images: lower is better",
    "frechet_distance": "distance of feature means and covariances to held-out images: lower is better",
    "kernel_distance": "unbiased kernel distance of the features: lower is better, about 0 for real images",
    "precision": "fraction of samples close to real images: higher is better",
    "recall": "fraction of held-out images close to samples: low if samples lack variety",
    "duplicates": "fraction with a nearer other sample than 99 % of held-out images have: 0.01 is usual",
    "memorized_fraction": "fraction with a nearer training image than 99 % of held-out images have: 0.01 is usual",
}
"""Metrics of task=evaluate, in the order of the page."""
GROUP = (("accuracy", ".1%"), ("found", ".1%"), ("kernel_distance", ".4g"))
"""Metrics of the samples with one label, and their formats."""
Pictures = list[tuple[str, str]]
"""Captions and data URLs of images."""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run's folder, also before its end. Return its path.

    Raises:
        UserError: the folder is not a run.
    """
    run = open_run(folder)
    result = run.result()
    verdict, healthy = result.pop("verdict", None), result.pop("healthy", True)
    metrics = run.folder / "metrics.csv"
    curves = read_curves(metrics) if metrics.exists() else {}
    best, shown = best_validation(curves), panels(curves)
    tensors = tensor_values(run.folder)
    published = next((found for _, found in run.evaluations(RESULT) if "table" in found), {})
    last = max((steps[-1] for steps, _ in curves.values()), default=0)
    ended = run.finished and last <= result.get("steps", last)  # not one that is being trained further
    drawings = {name: drawn([panel for panel in shown if panel.section == name], best) for name in SECTIONS}
    of_latents = drawings.pop(SECTIONS[-1])
    return write_page(
        run.folder / REPORT,
        "run.html.j2",
        name=run.folder.name,
        kind=KINDS.get(run.stage, run.stage),
        state="finished" if ended else "not finished",
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        verdict=verdict,
        healthy=healthy,
        command=command(run.folder),
        figures=[(UNITS.get(k, k), format_number(v)) for k, v in result.items() if not k.startswith("health/")],
        health=[(key[7:], f"{value:.4g}") for key, value in result.items() if key.startswith("health/")],
        best=best,
        curves=[(section, pictures) for section, pictures in drawings.items() if pictures],
        health_curves=of_latents,
        previews=[(f"step {int(path.stem[5:]):,}", as_data(path.read_bytes())) for path in previews(run.folder)],
        evaluations=evaluations(run),
        published=published.get("table"),
        published_state=comparability(published) if published else None,
        tensors=[(title, embedded(figure)) for title, figure in tensors.panels()] if tensors else [],
        tensor_table=tensors.table() if tensors else None,
        next_commands=next_commands(run, ended),
        config=(run.folder / CONFIG).read_text(),
        environment=f"torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}",
    )


def drawn(shown: list[Panel], best: Best | None) -> Pictures:
    """Draw each panel as an image, which narrow screens can wrap."""
    pictures = []
    for panel in shown:
        figure, axes = sheet()
        panel.draw(axes[0, 0], best)
        pictures.append((panel.title, embedded(figure)))
    return pictures


def next_commands(run: Run, ended: bool) -> list[tuple[str, str]]:
    """Return titles and commands: how to resume the run, and how to use it."""
    train, sample, here = shlex.join(program("train")), shlex.join(program("sample")), shlex.quote(str(run.folder))
    again = resume_command(program("train"), overrides_of(run.folder), run.folder)
    if not ended:
        return [("Resume", again)]
    limits = [f"trainer.max_steps={2 * run.result().get('steps', 0)}"]
    for key, off in (("max_time", None), ("max_epochs", -1)):
        if run.config.get("trainer", {}).get(key, off) != off:
            limits.append(f"trainer.{key}={json.dumps(off)}")
    longer = ("Train for longer", " ".join([again, *limits]))
    if run.stage == "vae":
        return [
            ("Reconstruct held-out images", f"{sample} run={here} task=reconstruct"),
            ("Train stage 2", f"{train} model=ldm vae={here}"),
            longer,
        ]
    commands = [
        ("Generate faces", f"{sample} run={here} num_images=64"),
        ("Evaluate", f"{sample} run={here} task=evaluate"),
        longer,
    ]
    if not run.is_fast:  # which has no guidance
        commands.insert(1, ("Tune the guidance", f"{sample} run={here} task=tune"))
    return commands


def tensor_values(folder: Path) -> TensorValues | None:
    """Return the statistics of tensors, if there are any."""
    path = folder / "tensors.csv"
    values = TensorValues.read(path) if path.exists() else None
    return values if values is not None and values.rows else None


def previews(folder: Path) -> list[Path]:
    """Return the first, the middle and the last preview."""
    paths = sorted((folder / "images").glob("step_*.png"))
    chosen = {round(number * (len(paths) - 1) / (NUM_PREVIEWS - 1)) for number in range(NUM_PREVIEWS)}
    return [paths[index] for index in sorted(chosen)] if paths else []


def evaluations(run: Run) -> list[dict[str, Any]]:
    """Return the results of task=evaluate in the run's folder, newest first."""
    found = []
    for path, result in run.evaluations("metrics.json"):
        real = result.get("training_photos", {})
        rows = [
            (name.replace("_", " "), f"{result[name]:.4g}", f"{real[name]:.4g}" if name in real else "", meaning)
            for name, meaning in MEANINGS.items()
            if name in result
        ]
        if rows:
            shown = {"rows": rows, "labels": label_rows(result), "folder": path.parent.relative_to(run.folder)}
            found.append({**result, **shown})
    return found


def label_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return label, value, images, probe accuracy, samples with the asked label, and kernel distance."""
    rows = []
    for name, label in result.get("labels", {}).items():
        for value, group in label["values"].items():
            metrics = [f"{group[key]:{form}}" if key in group else "" for key, form in GROUP]
            rows.append((name, value, f"{group['num_images']:,}", *metrics))
    return rows
