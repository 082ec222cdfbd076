"""Panels of logged values: which values share axes, and how they are drawn."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentfaces.files import read_csv

Curve = tuple[list[float], list[float]]
"""Steps and values of one logged key."""

SECTIONS = ("losses", "quality", "schedules and gradients", "latents")
QUALITY = ("psnr", "ssim", "feature_distance", "memorized_fraction")
SCHEDULES = ("kl_weight", "skip_dropout", "adaptive_weight", "lr-", "gradient_norm", "logit_gap")
FAMILY = re.compile(r"(?P<family>health/.+)_(?P<member>\d+|low|middle|high)|(?P<metric>.+?)_(?P<skips>with_.*skips)")
"""Keys that differ in their suffix share a panel: channels, frequency bands, with and without skips."""
COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#b83280", "#6b46c1", "#b7791f", "#319795", "#c53030")
STAGES = {"train": COLORS[0], "val": COLORS[1]}
MANY = 60
"""Number of values from which a curve is drawn pale, with its running mean."""


@dataclass(frozen=True)
class Best:
    """Training step, loss and, if logged, epoch of the validation with the lowest loss."""

    step: float
    loss: float
    epoch: int | None = None

    def __str__(self) -> str:
        epoch = f", epoch {self.epoch}" if self.epoch is not None else ""
        return f"best {self.loss:.4g} at step {self.step:,.0f}{epoch}"


@dataclass
class Panel:
    """One pair of axes: a title, one of `SECTIONS`, and curves by label."""

    title: str
    section: str
    curves: dict[str, Curve] = field(default_factory=dict)

    def draw(self, axes: Axes, best: Best | None) -> None:
        """Draw the curves, with a logarithmic axis if values are positive and span more than a factor of 20."""
        colors = cycle(COLORS)
        for label, (steps, values) in self.curves.items():
            color = STAGES.get(label) or next(colors)
            if len(values) >= MANY:
                axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
                axes.plot(steps, running_mean(values), color=color, linewidth=1.6, label=label)
            else:
                axes.plot(
                    steps, values, color=color, marker="." if len(values) < 30 else "", linewidth=1.4, label=label
                )
        finite = [value for _, values in self.curves.values() for value in values if np.isfinite(value)]
        if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
            axes.set_yscale("log")
        if best is not None and any(best.step <= steps[-1] for steps, _ in self.curves.values()):
            note = str(best) if self.title == "loss" else None
            axes.axvline(best.step, color="#718096", linestyle=":", linewidth=1.2, label=note, zorder=0)
        label_axes(axes, self.title, "training step")
        several = 1 < len(axes.get_legend_handles_labels()[1]) <= len(COLORS)  # a longer legend would hide the curves
        if several or self.title == "loss" or "val" in self.curves:
            axes.legend(fontsize=8, frameon=False, ncols=1 + (len(self.curves) > 5))


def sheet(rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes (rows, columns). Fixed margins take half the time of a layout engine."""
    width, height = 4.6, 3.0  # in inches, with margins
    left, right, top, bottom = 0.68, 0.14, 0.34, 0.5
    figure = Figure(figsize=(columns * width, rows * height))
    figure.subplots_adjust(
        left=left / (columns * width),
        right=1 - right / (columns * width),
        top=1 - top / (rows * height),
        bottom=bottom / (rows * height),
        wspace=(left + right) / (width - left - right),
        hspace=(top + bottom) / (height - top - bottom),
    )
    return figure, figure.subplots(rows, columns, squeeze=False)


def label_axes(axes: Axes, title: str, xlabel: str, ylabel: str = "") -> None:
    """Set title and labels, and remove the upper and the right spine."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Return the running mean over a window of a thirtieth of the values, smaller at the ends."""
    width = len(values) // 30 | 1
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def read_curves(metrics_csv: str | Path) -> dict[str, Curve]:
    """Read steps and values of each column of a run's metrics.csv."""
    curves: dict[str, Curve] = {}
    for row in read_csv(Path(metrics_csv)):
        for name, value in row.items():
            if name != "step" and value != "":
                steps, values = curves.setdefault(name, ([], []))
                steps.append(float(row["step"]))
                values.append(float(value))
    return curves


def best_validation(curves: Mapping[str, Curve]) -> Best | None:
    """Return where val/loss is lowest, counted from the adversary's first step if there is one."""
    steps, values = curves.get("val/loss", ([], []))
    begins = curves.get("train/adversarial", ([0.0], []))[0][0]
    allowed = [n for n, step in enumerate(steps) if step >= begins and np.isfinite(values[n])]
    if not allowed:
        return None
    best = min(allowed, key=values.__getitem__)
    epochs = dict(zip(*curves.get("epoch", ([], [])), strict=True))
    epoch = epochs.get(steps[best])
    return Best(steps[best], values[best], None if epoch is None else int(epoch))


def panels(curves: Mapping[str, Curve]) -> list[Panel]:
    """Group curves into panels, ordered by section, the loss first."""
    found: dict[str, Panel] = {}
    for name in sorted(curves):
        stage, _, term = name.rpartition("/")
        if name == "epoch" or stage == "test":
            continue
        title, label = (term, stage) if stage in ("train", "val") else (name, name.removeprefix("health/"))
        if match := FAMILY.fullmatch(name if stage == "health" else title):
            if match["family"]:
                number = match["member"]
                title, label = match["family"], f"channel {number}" if number.isdigit() else number
            else:
                title, label = match["metric"], f"{stage}, {match['skips'].replace('_', ' ')}"
        if stage == "health":
            title = "latents: " + title.removeprefix("health/").replace("_", " ")
        panel = found.setdefault(title, Panel(title, section(name)))
        panel.curves[label] = curves[name]
    return sorted(found.values(), key=lambda panel: (SECTIONS.index(panel.section), panel.title != "loss", panel.title))


def section(name: str) -> str:
    """Return the entry of `SECTIONS` of a logged value."""
    term = name.rpartition("/")[2]
    if name.startswith("health/"):
        return "latents"
    if term.startswith(SCHEDULES):
        return "schedules and gradients"
    return "quality" if term.startswith(QUALITY) else "losses"


def draw_panels(shown: Iterable[Panel], best: Best | None, columns: int = 3) -> Figure:
    """Draw panels in one figure. Each section starts a row."""
    rows: list[list[Panel]] = []
    for panel in shown:
        if not rows or len(rows[-1]) == columns or rows[-1][-1].section != panel.section:
            rows.append([])
        rows[-1].append(panel)
    figure, axes = sheet(len(rows), max(map(len, rows)))
    for line, row in zip(axes, rows, strict=True):
        for place, panel in zip(line, row, strict=False):
            panel.draw(place, best)
        for place in line[len(row) :]:
            place.axis("off")
    return figure
