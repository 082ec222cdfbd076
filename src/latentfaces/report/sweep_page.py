"""HTML report of a sweep: a table of its jobs, parallel coordinates, and loss curves."""

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
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentfaces.errors import ERROR_LOG, UserError
from latentfaces.evaluation.plots import read_curves
from latentfaces.files import read_json
from latentfaces.report.page import REPORT, embedded, write_page
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
"""Ratio of largest to smallest value from which an axis is logarithmic."""
FAILED = "#b03a22"
LONGEST = 22
"""Longest label on an axis."""


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
    def number(self) -> tuple[int, str]:
        """Sort key: 2 comes before 10."""
        return len(self.name), self.name

    @property
    def state(self) -> str:
        """State of the job."""
        if self.error:
            return "failed"
        return "pruned" if self.stopped else "finished" if self.result else "not finished"


@dataclass(frozen=True)
class Order:
    """Ranking of jobs: its description, the result that counts if any, and 1 if lower is better, else -1."""

    text: str
    metric: str | None = None
    sign: int = 1

    def rank(self, job: Job) -> tuple[Any, ...]:
        """Sort key of the jobs."""
        value = job.result.get(self.metric, math.nan) if self.metric else 0.0
        missing = not job.result or not math.isfinite(value)
        return missing, 0.0 if missing else self.sign * value, job.number


def changes_loss(keys: Sequence[str]) -> list[str]:
    """Return the keys that change what val/loss measures, so that jobs cannot be compared by it."""
    below = tuple(f"{key}." for key in CHANGING_LOSS if key != "data")
    found = [key for key in keys if key in CHANGING_LOSS or key.startswith(below)]
    return [key for key in found if key != "model.loss.auxiliary_weight"]  # not part of val/loss


def order_of(jobs: Sequence[Job], varied: Sequence[str]) -> Order:
    """Return the ranking of these jobs."""
    keys = changes_loss(varied)
    if not keys:
        return Order(f"Lowest {LOSS} first.", LOSS)
    why = f"{LOSS} is not comparable, as {', '.join(keys)} changes its definition."
    if any(PSNR in job.result for job in jobs):
        return Order(f"Highest {PSNR} first: {why}", PSNR, -1)
    return Order(f"By number: {why} Compare with `python sample.py run=JOB task=evaluate`.")


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
    return sorted(jobs, key=lambda job: job.number)


def write_sweep_report(folder: str | Path) -> Path:
    """Write `report.html` into a sweep's folder, `outputs/sweeps/<name>`.

    Raises:
        UserError: the folder has no jobs.
    """
    folder = Path(folder)
    jobs = read_jobs(folder)
    keys = sorted({key for job in jobs for key in job.overrides})
    varied = [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]
    order = order_of(jobs, varied)
    jobs.sort(key=order.rank)
    ended = [job.result for job in jobs if job.result]
    shown = [name for name in SHOWN if len({result.get(name) for result in ended}) > (len(ended) > 1)]
    rows = [
        {
            "name": job.name,
            # Quoted, or a folder called javascript:... would be a link that runs.
            "link": quote(f"{job.name}/{REPORT}") if (job.folder / REPORT).exists() else None,
            "overrides": [job.overrides.get(key, "") for key in varied],
            "results": [f"{job.result[name]:.5g}" if name in job.result else "" for name in shown],
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
        order=order.text,
        varied=varied,
        shown=shown,
        rows=rows,
        picture=embedded(parallel_coordinates(jobs, varied, shown)) if len(jobs) > 1 and (varied or shown) else None,
        curves=embedded(figure) if (figure := loss_curves(jobs)) is not None else None,
    )


def colors(jobs: Sequence[Job]) -> dict[str, Any]:
    """Return the color of each job: yellow (first) to violet (last), red if failed, gray if not finished."""
    ended = [job for job in jobs if job.result]
    scale = matplotlib.colormaps["viridis_r"]
    places = {job.name: scale(0.08 + 0.92 * rank / max(len(ended) - 1, 1)) for rank, job in enumerate(ended)}
    return {job.name: places.get(job.name, FAILED if job.error else "0.6") for job in jobs}


def parallel_coordinates(jobs: Sequence[Job], varied: Sequence[str], shown: Sequence[str]) -> Figure:
    """Plot parallel coordinates: an axis per varied key and per result, a line per job.

    Args:
        jobs: jobs in the order of their colors.
        varied: keys that differ between jobs.
        shown: names of results.
    """
    columns = [(key, [job.overrides.get(key) for job in jobs]) for key in varied]
    columns += [(name, [job.result.get(name) for job in jobs]) for name in shown]
    figure = Figure(figsize=(max(1.25 * len(columns), 6) + 1, 5), layout="constrained")
    axes = figure.subplots()
    places = np.stack([heights(axes, number, values) for number, (_, values) in enumerate(columns)], axis=1)
    color = colors(jobs)
    for job, line in reversed(list(zip(jobs, places, strict=True))):  # the best is drawn last, on top
        style: dict[str, Any] = {} if job.result else {"linestyle": ":", "zorder": 3}
        label = f"{job.name} failed" if job.error else job.name
        axes.plot(line, color=color[job.name], linewidth=2, marker="o", markersize=4, label=label, **style)
    axes.set_xticks(range(len(columns)), [short(name, 2 * LONGEST) for name, _ in columns], rotation=18, ha="right")
    axes.set(yticks=[], ylim=(-0.08, 1.08), xlim=(-0.15, len(columns) - 0.4))
    axes.spines[:].set_visible(False)
    for number in range(len(columns)):
        axes.axvline(number, color="0.75", linewidth=0.8, zorder=0)
    if varied and len(columns) > len(varied):
        axes.axvspan(-0.15, len(varied) - 0.5, color="0.95", zorder=-1)  # overrides | results
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], title="job", fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    return figure


def heights(axes: Axes, column: int, values: Sequence[Any]) -> np.ndarray:
    """Label one axis, and return positions in [0, 1]: numbers by size, words in alphabetical order, NaN for None."""
    try:
        numbers = np.array([math.nan if value is None else float(value) for value in values])
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        if low > 0 and high > WIDE * low:
            numbers = np.log(numbers)
        size = np.nanmax(numbers) - np.nanmin(numbers)
        result = (numbers - np.nanmin(numbers)) / size if size > 0 else np.where(np.isnan(numbers), np.nan, 0.5)
        labels = {0.0: f"{low:.4g}", 1.0: f"{high:.4g}"} if size > 0 else {0.5: f"{low:.4g}"}
    except ValueError:
        words = sorted({str(value) for value in values if value is not None})
        place = {word: index / (len(words) - 1) if len(words) > 1 else 0.5 for index, word in enumerate(words)}
        result = np.array([math.nan if value is None else place[str(value)] for value in values])
        labels = {height: word for word, height in place.items()}
    for height, text in labels.items():
        axes.text(
            column + 0.05, height + 0.015, short(text, LONGEST), fontsize=8, va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
        )  # fmt: skip
    return result


def short(text: str, length: int) -> str:
    """Return the end of a text, at most `length` characters."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


def loss_curves(jobs: Sequence[Job]) -> Figure | None:
    """Plot val/loss of all jobs over training steps; None if there is none yet."""
    curves = {}
    for job in jobs:
        path = job.folder / "metrics.csv"
        if path.exists() and "val/loss" in (found := read_curves(path)):
            curves[job.name] = found["val/loss"]
    if not curves:
        return None
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes, color = figure.subplots(), colors(jobs)
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name, color=color[name], marker="." if len(steps) < 30 else None)
    losses = [value for _, values in curves.values() for value in values]
    if min(losses) > 0 and max(losses) > WIDE * min(losses):
        axes.set_yscale("log")
    axes.set(xlabel="training step", ylabel="val/loss")
    axes.grid(alpha=0.3)
    axes.legend(title="job", fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
