"""HTML report of a sweep: a table of its jobs, and their loss curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure

from latentfaces.errors import ERROR_LOG, UserError
from latentfaces.evaluation.plots import read_curves
from latentfaces.files import read_json
from latentfaces.report.page import REPORT, embedded, format_number, write_page
from latentfaces.run import PRUNING, RESULT

LOSS, PSNR = "val/best_loss", "test/psnr"
SHOWN = (
    *(LOSS, PSNR, "test/ssim", "test/kl", "health/active_units", "health/latent_high_frequency"),
    *("steps", "minutes"),
)
CHANGING_LOSS = (
    *("data", "data.root", "data.resolution", "data.num_images", "data.val_every", "data.num_val_images", "vae"),
    *("data.filter", "trainer.limit_val_batches"),
    *("model/loss", "model.loss", "model.kl_weight.end", "annealing.end"),
    *("model/schedule", "model/weighting", "model/time_sampler"),
    *("model.denoiser.schedule", "model.denoiser.target"),
)
WIDE = 20.0
"""Ratio of largest to smallest loss from which the axis is logarithmic."""


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        folder: folder of the job.
        overrides: value of each override by key.
        result: results, empty before the end.
        error: error message of a failed job.
        stopped: reason of a pruned job.
    """

    folder: Path
    overrides: dict[str, str]
    result: dict[str, Any]
    error: str = ""
    stopped: str = ""

    @property
    def name(self) -> str:
        """Number of the job, from its folder."""
        return self.folder.name

    @property
    def state(self) -> str:
        """State of the job."""
        if self.error:
            return "failed"
        return "pruned" if self.stopped else "finished" if self.result else "not finished"


def changes_loss(keys: Sequence[str]) -> list[str]:
    """Return the keys that change what val/loss measures, so that jobs cannot be compared by it."""
    below = tuple(f"{key}." for key in CHANGING_LOSS if key != "data")
    found = [key for key in keys if key in CHANGING_LOSS or key.startswith(below)]
    return [key for key in found if key != "model.loss.auxiliary_weight"]  # not part of val/loss


def ranked(jobs: Sequence[Job], varied: Sequence[str]) -> tuple[str, list[Job]]:
    """Return a description of the ranking, and the jobs in its order. Those without the metric come last."""
    metric, sign, order = LOSS, 1, f"Lowest {LOSS} first."
    if keys := changes_loss(varied):
        why = f"{LOSS} is not comparable, as {', '.join(keys)} changes its definition."
        if not any(PSNR in job.result for job in jobs):
            return f"By number: {why} Compare with `python sample.py run=JOB task=evaluate`.", list(jobs)
        metric, sign, order = PSNR, -1, f"Highest {PSNR} first: {why}"

    def score(job: Job) -> float:
        value = sign * float(job.result.get(metric, math.inf))
        return value if math.isfinite(value) else math.inf

    return order, sorted(jobs, key=score)


def read_jobs(folder: Path) -> list[Job]:
    """Read all jobs of a sweep, ordered by number.

    Raises:
        UserError: there are none.
    """
    jobs = []
    for path in folder.glob("*/.hydra/overrides.yaml"):
        job = path.parents[1]
        overrides = dict(str(item).lstrip("+").partition("=")[::2] for item in yaml.safe_load(path.read_text()))
        error = (job / ERROR_LOG).read_text().splitlines()[0] if (job / ERROR_LOG).exists() else ""
        stopped = read_json(job / PRUNING).get("stopped") or ""
        jobs.append(Job(job, overrides, read_json(job / RESULT), error, stopped))
    if not jobs:
        raise UserError(f"{folder} has no jobs of a sweep. Give a folder in outputs/sweeps.")
    return sorted(jobs, key=lambda job: (len(job.name), job.name))  # 2 comes before 10


def write_sweep_report(folder: str | Path) -> Path:
    """Write `report.html` into a sweep's folder, `outputs/sweeps/<name>`.

    Raises:
        UserError: the folder has no jobs.
    """
    folder = Path(folder)
    jobs = read_jobs(folder)
    keys = sorted({key for job in jobs for key in job.overrides})
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    order, jobs = ranked(jobs, varied)
    ended = [job.result for job in jobs if job.result]
    values = {name: {result[name] for result in ended if name in result} for name in SHOWN}
    shown = [name for name in SHOWN if len(values[name]) > (len(ended) > 1)]
    rows = [
        {
            "name": job.name,
            # Quoted, or a folder called javascript:... would be a link that runs.
            "link": quote(f"{job.name}/{REPORT}") if (job.folder / REPORT).exists() else None,
            "overrides": [job.overrides.get(key, "") for key in varied],
            "results": [format_number(job.result[name], 5) if name in job.result else "" for name in shown],
            "state": job.state,
            "reason": job.error or job.stopped,
        }
        for job in jobs
    ]
    return write_page(
        folder / REPORT,
        "sweep.html.j2",
        name=folder.name,
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        num_failed=sum(bool(job.error) for job in jobs),
        order=order,
        varied=varied,
        shown=shown,
        rows=rows,
        curves=embedded(figure) if (figure := loss_curves(jobs)) is not None else None,
    )


def loss_curves(jobs: Sequence[Job]) -> Figure | None:
    """Plot val/loss over training steps, from the first job (yellow) to the last (violet); None if there is none."""
    curves = {}
    for job in jobs:
        path = job.folder / "metrics.csv"
        if path.exists() and "val/loss" in (found := read_curves(path)):
            curves[job.name] = found["val/loss"]
    if not curves:
        return None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=matplotlib.colormaps["viridis_r"](np.linspace(0.08, 1, len(curves))))
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, marker="." if len(steps) < 30 else None)
    losses = [value for _, values in curves.values() for value in values]
    if min(losses) > 0 and max(losses) > WIDE * min(losses):
        axes.set_yscale("log")
    axes.set(xlabel="training step", ylabel="val/loss")
    axes.grid(alpha=0.3)
    axes.legend(title="job", fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
