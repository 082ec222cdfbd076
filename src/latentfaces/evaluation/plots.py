"""Pictures of a run."""

import csv
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.errors import UserError
from latentfaces.evaluation.grids import save_grid

Curve = tuple[list[float], list[float]]


def read_curves(metrics_csv: str | Path) -> dict[str, Curve]:
    """Steps and values of every column of a run's metrics.csv."""
    curves: dict[str, Curve] = {}
    with Path(metrics_csv).open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name not in ("step", "epoch") and value not in ("", None):
                    steps, values = curves.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return curves


def plot_losses(metrics_csv: str | Path, output: str | Path | None = None) -> Figure:
    """Every logged value over training steps, training and validation together; the lowest val/loss is marked.

    Args:
        metrics_csv: a run's metrics.csv.
        output: where to write the picture, if anywhere.
    """
    curves = {name: c for name, c in read_curves(metrics_csv).items() if not name.startswith("test/")}
    if not curves:
        raise UserError(f"{metrics_csv} holds no values yet")
    panels: dict[str, dict[str, Curve]] = {}
    for name, curve in sorted(curves.items()):
        stage, _, term = name.rpartition("/")
        panels.setdefault(term if stage in ("train", "val") else name, {})[stage or name] = curve
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    for axis, (term, stages) in zip(axes, panels.items(), strict=False):
        for stage, (steps, values) in stages.items():
            axis.plot(steps, values, label=stage, marker="." if len(steps) < 30 else None, linewidth=1.2)
        everything = [value for _, values in stages.values() for value in values]
        if min(everything) > 0 and max(everything) > 20 * min(everything):
            axis.set_yscale("log")
        if term == "loss" and "val" in stages:
            steps, values = stages["val"]
            best = min(range(len(values)), key=values.__getitem__)
            axis.axvline(steps[best], color="grey", linestyle=":", label=f"best {values[best]:.4g}")
        axis.set(title=term, xlabel="training step")
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    if output is not None:
        figure.savefig(output, dpi=120)
    return figure


@torch.no_grad()
def visualize_random_input_output(
    vae: VAE, images: Tensor, output: str | Path, num_images: int = 8, seed: int = 0
) -> Tensor:
    """Random images, below them their reconstructions, below those the absolute error times four, written as PNG.

    Args:
        vae: the model.
        images: (n, 3, R, R) in [-1, 1] to choose from.
        output: where to write the picture.
        num_images: how many to show.
        seed: of the choice.

    Returns:
        The three rows, (3 * num_images, 3, R, R) in [-1, 1].
    """
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:num_images]
    originals = images[chosen]
    reconstructions = vae.decode(vae.encode(originals).mode())
    error = (4 * (reconstructions - originals).abs() - 1).clamp(max=1)
    rows = torch.cat([originals, reconstructions, error])
    save_grid(rows, Path(output), columns=len(originals))
    return rows
