"""What is inside a network: one line of statistics for each tensor, over training."""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

STATISTICS = ("mean", "std", "min", "max", "nan", "zero", "saturated")
COLUMNS = ("step", "tensor", *STATISTICS)
Row = dict[str, float | str]


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
        with Path(path).open(newline="") as file:
            return cls(
                [
                    {key: value if key == "tensor" else float(value) for key, value in row.items()}
                    for row in csv.DictReader(file)
                ]
            )

    def plot(self, output: str | Path | None = None) -> Figure:
        """Each statistic over the steps, a panel each, a line for each tensor.

        Args:
            output: where to write the picture, if anywhere.
        """
        names = list(dict.fromkeys(str(row["tensor"]) for row in self.rows))
        figure = Figure(figsize=(15, 6.4), layout="constrained")
        axes = list(figure.subplots(2, 4).flat)
        for axis, statistic in zip(axes, STATISTICS, strict=False):
            for number, name in enumerate(names):
                points = [(row["step"], row[statistic]) for row in self.rows if row["tensor"] == name]
                axis.plot(*zip(*points, strict=True), label=name, color=f"C{number % 10}", linewidth=1, marker=".")
            axis.set(title=statistic, xlabel="training step")
            axis.grid(alpha=0.3)
        handles, labels = axes[0].get_legend_handles_labels()
        axes[-1].axis("off")
        axes[-1].legend(handles[:24], labels[:24], fontsize=6, loc="center", ncol=1 + (len(names) > 12))
        if output is not None:
            figure.savefig(output, dpi=120)
        return figure


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
