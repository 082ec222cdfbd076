"""Statistics of weights, gradients and activations over training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from latentfaces.evaluation.panels import label_axes, sheet
from latentfaces.files import read_csv

STATISTICS = ("mean", "std", "min", "max", "nan", "zero", "saturated")
Row = dict[str, float | str]
KINDS = ("weights", "gradients", "activations")
FRACTIONS = ("zero", "saturated", "nan")
PLOTTED = {
    "mean": "mean",
    "std": "std",
    "range": "min and max",
    "zero": "fraction of zeros",
    "saturated": "fraction saturated",
    "nan": "fraction not finite",
}
MAX_LEGEND = 6
"""Largest number of tensors with a legend."""


def kind_of(name: str) -> str:
    """Return which of `KINDS` a tensor is, by the suffix of its name."""
    if name.endswith(".grad"):
        return "gradients"
    return "activations" if name.endswith(".output") else "weights"


@dataclass
class TensorValues:
    """Statistics of tensors, one row per tensor and step.

    mean, std, min and max are of the finite values. The others are fractions: nan of non-finite values, zero of exact
    zeros, saturated of further values equal to the minimum or maximum, as after a clamp, a dead ReLU or a saturated
    Tanh.
    """

    rows: list[Row] = field(default_factory=list)

    def table(self) -> str:
        """Format the last row of each tensor as text."""
        last = {str(row["tensor"]): row for row in self.rows}
        width = max([len(name) for name in last] + [6])
        lines = [f"{'tensor':{width}s} " + " ".join(f"{name:>10s}" for name in STATISTICS)]
        lines += [f"{n:{width}s} " + " ".join(f"{row[s]:10.3g}" for s in STATISTICS) for n, row in last.items()]
        return "\n".join(lines)

    @classmethod
    def read(cls, path: str | Path) -> "TensorValues":
        """Read the tensors.csv of a run."""
        rows = read_csv(Path(path))
        return cls([{key: value if key == "tensor" else float(value) for key, value in row.items()} for row in rows])

    def panels(self) -> list[tuple[str, Figure]]:
        """Return titles and figures of all statistics, without fractions that are always 0."""
        shown = []
        for kind in KINDS:
            rows = [row for history in self.of(kind).values() for row in history]
            for statistic in PLOTTED:
                if not rows or (statistic in FRACTIONS and not any(row[statistic] for row in rows)):
                    continue
                figure, axes = sheet()
                self.draw(axes[0, 0], kind, statistic)
                shown.append((f"{kind}, {PLOTTED[statistic]}", figure))
        return shown

    def of(self, kind: str) -> dict[str, list[Row]]:
        """Return the rows of each tensor of one of `KINDS`, in the order of the network."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            name = str(row["tensor"])
            if kind == kind_of(name):
                found.setdefault(name, []).append(row)
        return found

    def draw(self, axes: Axes, kind: str, statistic: str) -> None:
        """Draw one statistic of one kind: a line per tensor, from dark (first in the network) to light (last)."""
        tensors = self.of(kind)
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(tensors)))
        for (name, rows), color in zip(tensors.items(), colors, strict=True):
            steps = [row["step"] for row in rows]
            for column in ("min", "max") if statistic == "range" else (statistic,):
                values = [row[column] for row in rows]
                axes.plot(steps, values, color=color, linewidth=1, marker=".", markersize=4, label=name)
        stds = [float(row["std"]) for rows in tensors.values() for row in rows if float(row["std"]) > 0]
        if statistic == "std" and stds and max(stds) > 20 * min(stds):
            axes.set_yscale("log")
        if len(tensors) <= MAX_LEGEND and statistic == next(iter(PLOTTED)):
            axes.legend(fontsize=8, frameon=False)
        label_axes(axes, f"{kind}, {PLOTTED[statistic]}", "training step")


def track_tensor_values(
    tensors: Mapping[str, Tensor] | nn.Module, step: int = 0, history: TensorValues | None = None
) -> TensorValues:
    """Add statistics of tensors to a history, e.g. `print(track_tensor_values(vae).table())`.

    Args:
        tensors: tensors by name, or a module: its weights and gradients.
        step: training step.
        history: history to extend; a new one if None.

    Returns:
        The history.
    """
    history = TensorValues() if history is None else history
    named = module_tensors(tensors) if isinstance(tensors, nn.Module) else dict(tensors)
    measured = [statistics(tensor.detach()) for tensor in named.values()]
    if measured:
        # One copy for all tensors, as each copy waits for the device.
        for name, values in zip(named, torch.stack(measured).tolist(), strict=True):
            history.rows.append({"step": float(step), "tensor": name, **dict(zip(STATISTICS, values, strict=True))})
    return history


def statistics(tensor: Tensor) -> Tensor:
    """Return the `STATISTICS` of a tensor: (7,) float32 on its device."""
    values = tensor.float().flatten()
    if values.numel() == 0:
        return values.new_zeros(len(STATISTICS))
    finite = values.isfinite()
    number = finite.sum().clamp(min=1)
    inside = torch.where(finite, values, values.new_zeros(()))
    mean = inside.sum() / number
    std = (torch.where(finite, inside - mean, inside.new_zeros(())).square().sum() / number).sqrt()
    low = torch.where(finite, values, values.new_tensor(torch.inf)).min()
    high = torch.where(finite, values, values.new_tensor(-torch.inf)).max()
    at_ends = ((values == low).sum() - 1).clamp(min=0) + ((values == high).sum() - 1).clamp(min=0)
    saturated = torch.where(low == high, values.new_zeros(()), at_ends / number)
    bounds = torch.stack([low, high]).nan_to_num(posinf=0.0, neginf=0.0)
    return torch.stack([mean, std, *bounds, 1 - finite.float().mean(), (values == 0).float().mean(), saturated])


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a module and their gradients, if any, by name."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[name] = parameter
        if parameter.grad is not None:
            tensors[f"{name}.grad"] = parameter.grad
    return tensors


@contextmanager
def activations(module: nn.Module, depth: int = 2) -> Iterator[dict[str, Tensor]]:
    """Within this context, collect the outputs of submodules by name, down to `depth` levels."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, Tensor) and first.is_floating_point():
            seen[name] = first.detach()

    parts = [(name, part) for name, part in module.named_modules() if name and name.count(".") < depth]
    hooks = [part.register_forward_hook(lambda _, __, output, name=name: keep(name, output)) for name, part in parts]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
