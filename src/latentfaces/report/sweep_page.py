"""A sweep as one page: its jobs in a table, and as lines through what they were told and what they came to."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure

from latentfaces.errors import UserError
from latentfaces.report.page import REPORT, embedded, write_page
from latentfaces.run import RESULT

SCORE = "val/best_loss"
SHOWN = (SCORE, "test/loss", "test/psnr", "test/ssim", "steps", "minutes")


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Args:
        name: its folder.
        told: key and value of what was typed for it.
        result: what it came to; empty where it has not ended.
    """

    name: str
    told: dict[str, str]
    result: dict[str, Any]

    @property
    def score(self) -> float:
        """Lower is better; infinite without a result."""
        return float(self.result.get(SCORE, np.inf))


def read_jobs(folder: Path) -> list[Job]:
    """All jobs below a sweep's folder, the best first.

    Raises:
        UserError: there are none.
    """
    jobs = []
    for overrides in folder.glob("*/.hydra/overrides.yaml"):
        here = overrides.parents[1]
        told = dict(str(item).lstrip("+").partition("=")[::2] for item in yaml.safe_load(overrides.read_text()))
        result = json.loads((here / RESULT).read_text()) if (here / RESULT).exists() else {}
        jobs.append(Job(here.name, told, result))
    if not jobs:
        raise UserError(f"{folder} holds no jobs of a sweep")
    return sorted(jobs, key=lambda job: (job.score, job.name))


def write_sweep_report(folder: str | Path) -> Path:
    """Write `report.html` into a sweep's folder, `outputs/sweeps/<name>`.

    Raises:
        UserError: the folder holds no jobs.
    """
    folder = Path(folder)
    jobs = read_jobs(folder)
    keys = sorted({key for job in jobs for key in job.told})
    varied = [key for key in keys if len({job.told.get(key) for job in jobs}) > 1]
    shown = [name for name in SHOWN if any(name in job.result for job in jobs)]
    rows = [
        [job.name, *(job.told.get(key, "") for key in varied)]
        + [f"{job.result[name]:.5g}" if name in job.result else "none" for name in shown]
        for job in jobs
    ]
    ended = [job for job in jobs if job.result]
    return write_page(
        folder / REPORT,
        "sweep.html.j2",
        name=folder.name,
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        num_failed=len(jobs) - len(ended),
        columns=["job", *varied, *shown],
        rows=rows,
        picture=embedded(parallel_coordinates(ended, varied, shown)) if len(ended) > 1 else None,
    )


def parallel_coordinates(jobs: list[Job], varied: list[str], shown: list[str]) -> Figure:
    """An axis for each thing told and each figure, a line for each job, coloured by its score."""
    columns = [*((key, [job.told.get(key, "") for job in jobs]) for key in varied)]
    columns += [(name, [job.result.get(name, np.nan) for job in jobs]) for name in shown]
    figure = Figure(figsize=(2.2 * max(len(columns), 3), 4.5), layout="constrained")
    axes = figure.subplots()
    places = np.stack([heights(axes, number, values) for number, (_, values) in enumerate(columns)], axis=1)
    ranks = np.argsort(np.argsort([job.score for job in jobs])) / max(len(jobs) - 1, 1)
    for job, line, rank in zip(jobs, places, ranks, strict=True):
        axes.plot(line, color=matplotlib.colormaps["viridis_r"](1 - rank), linewidth=2, alpha=0.8, label=job.name)
    axes.set_xticks(range(len(columns)), [name for name, _ in columns], rotation=20, ha="right")
    axes.set(yticks=[], ylim=(-0.08, 1.08))
    for number in range(len(columns)):
        axes.axvline(number, color="grey", linewidth=0.8, zorder=0)
    axes.legend(title="job", fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def heights(axes: Any, column: int, values: list[Any]) -> np.ndarray:
    """Places in [0, 1] on one axis, which is lettered: numbers by their size, words in the order of the alphabet."""
    try:
        numbers = np.array([float(value) for value in values])
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        ends = {0.0: f"{low:.4g}", 1.0: f"{high:.4g}"} if high > low else {0.5: f"{low:.4g}"}
        result = (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
    except ValueError:
        words = sorted({str(value) for value in values})
        place = {word: index / max(len(words) - 1, 1) for index, word in enumerate(words)}
        ends = {height: word for word, height in place.items()}
        result = np.array([place[str(value)] for value in values])
    for height, letters in ends.items():
        axes.text(column + 0.04, height, letters, fontsize=8, va="center")
    return result
