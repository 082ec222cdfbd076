"""What a run logged, as panels: which values belong on one pair of axes, and how these are drawn."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latentfaces.files import read_csv

Curve = tuple[list[float], list[float]]
"""Steps and values."""

SECTIONS = ("losses", "quality", "schedules and gradients", "latents")
QUALITY = ("psnr", "ssim", "frechet", "kernel", "fid")
SCHEDULES = ("kl_weight", "skip_dropout", "adaptive_weight", "lr-", "gradient_norm", "logit_gap")
FAMILY = re.compile(r"(?P<family>health/.+)_(?P<member>\d+|low|middle|high)|(?P<metric>.+?)_(?P<skips>with_.*skips)")
"""Values that are told apart by their ending share a panel: channels, bands of frequency, with and without skips."""
COLOURS = ("#2b6cb0", "#dd6b20", "#2f855a", "#b83280", "#6b46c1", "#b7791f", "#319795", "#c53030")
STAGES = {"train": COLOURS[0], "val": COLOURS[1]}
MANY = 60
"""Values of a curve from which its running mean is drawn, and itself palely."""


@dataclass(frozen=True)
class Best:
    """The validation with the lowest loss.

    Args:
        step: of training.
        loss: there.
        epoch: there, where the log tells.
    """

    step: float
    loss: float
    epoch: int | None = None

    def __str__(self) -> str:
        epoch = f", epoch {self.epoch}" if self.epoch is not None else ""
        return f"best {self.loss:.4g} at step {self.step:,.0f}{epoch}"


@dataclass
class Panel:
    """One pair of axes.

    Args:
        title: what is on it.
        section: one of `SECTIONS`.
        curves: by their labels.
    """

    title: str
    section: str
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def values(self) -> list[float]:
        """All that are drawn."""
        return [value for _, values in self.curves.values() for value in values]

    def draw(self, axes: Axes, best: Best | None) -> None:
        """Draw it, on a logarithmic axis where the values are positive and span more than a factor of 20."""
        colours = iter(COLOURS)
        for label, (steps, values) in self.curves.items():
            colour = STAGES.get(label) or next(colours)
            if len(values) >= MANY:
                axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
                axes.plot(steps, running_mean(values), color=colour, linewidth=1.6, label=label)
            else:
                axes.plot(
                    steps, values, color=colour, marker="." if len(values) < 30 else "", linewidth=1.4, label=label
                )
        known = [value for value in self.values if np.isfinite(value)]
        if known and min(known) > 0 and max(known) > 20 * min(known):
            axes.set_yscale("log")
        if best is not None and any(best.step <= steps[-1] for steps, _ in self.curves.values()):
            told = str(best) if self.title == "loss" else None
            axes.axvline(best.step, color="#718096", linestyle=":", linewidth=1.2, label=told, zorder=0)
        lettered(axes, self.title, "training step")
        if len(axes.get_legend_handles_labels()[1]) > 1 or self.title == "loss" or "val" in self.curves:
            axes.legend(fontsize=8, frameon=False, ncols=1 + (len(self.curves) > 5))


def sheet(rows: int = 1, columns: int = 1, width: float = 4.6, height: float = 3.0) -> tuple[Figure, np.ndarray]:
    """A figure of panels (rows, columns), each so many inches with its words: in half the time of a layout engine."""
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


def lettered(axes: Axes, title: str, xlabel: str, ylabel: str = "") -> None:
    """Give axes their words, and take away what shows nothing."""
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Mean over a thirtieth of the values around each; at the ends, over those that are there."""
    width = len(values) // 30 | 1
    kernel = np.ones(width)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def read_curves(metrics_csv: str | Path) -> dict[str, Curve]:
    """Steps and values of every column of a run's metrics.csv."""
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
    """Every logged value in its place: the loss first, then its terms, then what it comes to and what drives it."""
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
    """All on one sheet; each section begins a row."""
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
