"""What is inside a network: one line of statistics for each tensor, over training."""

import csv
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

from latentfaces.evaluation.panels import lettered, sheet
from latentfaces.files import read_csv

STATISTICS = ("mean", "std", "min", "max", "nan", "zero", "saturated")
COLUMNS = ("step", "tensor", *STATISTICS)
Row = dict[str, float | str]
KINDS = {"weights": "", "gradients": ".grad", "activations": ".output"}
"""What a tensor is, by the ending of its name."""
SHARES = ("zero", "saturated", "nan")
PLOTTED = {
    "mean": "mean",
    "std": "standard deviation",
    "ends": "least and greatest",
    "zero": "share of zeros",
    "saturated": "share at the ends",
    "nan": "share not finite",
}
FEW = 6
"""So many tensors get a legend."""


@dataclass
class TensorValues:
    """Statistics of tensors, a row for each tensor and step.

    mean, std, min and max are of the finite values; nan is the share of values that are not finite, zero of those that
    are exactly 0, saturated of those that sit at the tensor's own minimum or maximum beside the one that must: the sign
    of a clamp, a dead ReLU or a Tanh driven to its ends.

    Args:
        rows: what there is already.
    """

    rows: list[Row] = field(default_factory=list)

    def table(self) -> str:
        """The last row of each tensor, as text in columns."""
        last = {str(row["tensor"]): row for row in self.rows}
        width = max([len(name) for name in last] + [6])
        lines = [f"{'tensor':{width}s} " + " ".join(f"{name:>10s}" for name in STATISTICS)]
        lines += [f"{n:{width}s} " + " ".join(f"{row[s]:10.3g}" for s in STATISTICS) for n, row in last.items()]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Append the rows to a CSV, and forget them."""
        new = not path.exists()
        with path.open("a", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            if new:
                table.writeheader()
            table.writerows(
                {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in self.rows
            )
        self.rows.clear()

    @classmethod
    def read(cls, path: str | Path) -> "TensorValues":
        """From such a CSV."""
        rows = read_csv(Path(path))
        return cls([{key: value if key == "tensor" else float(value) for key, value in row.items()} for row in rows])

    def plot(self, output: str | Path | None = None) -> Figure:
        """Weights, gradients and activations in rows, a statistic a column, a line for each tensor over the steps.

        Args:
            output: where to write the picture, if anywhere.
        """
        kinds = [kind for kind in KINDS if self.of(kind)]
        figure, axes_of = sheet(len(kinds), len(PLOTTED), 3.6, 2.8)
        for line, kind in zip(axes_of, kinds, strict=True):
            for axes, statistic in zip(line, PLOTTED, strict=True):
                self.draw(axes, kind, statistic)
        if output is not None:
            figure.savefig(output, dpi=120)
        return figure

    def panels(self) -> list[tuple[str, Figure]]:
        """Titles and figures of what there is to see: shares only where some tensor has one."""
        shown = []
        for kind in KINDS:
            rows = [row for history in self.of(kind).values() for row in history]
            for statistic in PLOTTED:
                if not rows or (statistic in SHARES and not any(row[statistic] for row in rows)):
                    continue
                figure, axes = sheet()
                self.draw(axes[0, 0], kind, statistic)
                shown.append((f"{kind}, {PLOTTED[statistic]}", figure))
        return shown

    def of(self, kind: str) -> dict[str, list[Row]]:
        """The rows of each tensor of one of `KINDS`, in the order of the network."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            name = str(row["tensor"])
            if kind == next((k for k, ending in KINDS.items() if ending and name.endswith(ending)), "weights"):
                found.setdefault(name, []).append(row)
        return found

    def draw(self, axes: Axes, kind: str, statistic: str) -> None:
        """One statistic of one kind: a line a tensor, the first of the network dark, the last light."""
        tensors = self.of(kind)
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(tensors)))
        for (name, rows), colour in zip(tensors.items(), colours, strict=True):
            steps = [row["step"] for row in rows]
            for end in ("min", "max") if statistic == "ends" else (statistic,):
                axes.plot(
                    steps, [row[end] for row in rows], color=colour, linewidth=1, marker=".", markersize=4, label=name
                )
        values = [float(row["std"]) for rows in tensors.values() for row in rows if float(row["std"]) > 0]
        if statistic == "std" and values and max(values) > 20 * min(values):
            axes.set_yscale("log")
        if len(tensors) <= FEW and statistic == next(iter(PLOTTED)):
            axes.legend(fontsize=8, frameon=False)
        lettered(axes, f"{kind}, {PLOTTED[statistic]}", "training step")


def track_tensor_values(
    tensors: Mapping[str, Tensor] | nn.Module, step: int = 0, history: TensorValues | None = None
) -> TensorValues:
    """Add the statistics of some tensors to a history: `print(track_tensor_values(vae).table())`.

    Args:
        tensors: by name; of a module, its weights and what gradients there are.
        step: of training, to plot over.
        history: to go on with; a new one by default.

    Returns:
        The history.
    """
    history = TensorValues() if history is None else history
    named = module_tensors(tensors) if isinstance(tensors, nn.Module) else dict(tensors)
    measured = [statistics(tensor.detach()) for tensor in named.values()]
    if measured:
        # One look at the device for all of them: each look waits for all that it has yet to do.
        for name, values in zip(named, torch.stack(measured).tolist(), strict=True):
            history.rows.append({"step": float(step), "tensor": name, **dict(zip(STATISTICS, values, strict=True))})
    return history


def statistics(tensor: Tensor) -> Tensor:
    """`STATISTICS` of a tensor, (7,) float32 on its device."""
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


def module_tensors(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Weights of a module, and their gradients where there are any."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        tensors[f"{prefix}{name}"] = parameter
        if parameter.grad is not None:
            tensors[f"{prefix}{name}.grad"] = parameter.grad
    return tensors


@contextmanager
def activations(module: nn.Module, depth: int = 2) -> Iterator[dict[str, Tensor]]:
    """Within this context, collect what the module's parts give, by name, down to `depth` names below it."""
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
