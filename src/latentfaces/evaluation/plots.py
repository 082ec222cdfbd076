"""Plots of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.errors import UserError
from latentfaces.evaluation.grids import save_grid
from latentfaces.evaluation.panels import COLORS, best_validation, draw_panels, label_axes, panels, read_curves
from latentfaces.marks import EDITED

DPI = 120
RED = "#c53030"
MAX_BINS = 40


def plot_losses(metrics_csv: str | Path, output: str | Path | None = None) -> Figure:
    """Plot all logged values over training steps, and mark the validation with the lowest loss.

    Args:
        metrics_csv: a run's metrics.csv.
        output: image file to write.

    Raises:
        UserError: nothing was logged yet.
    """
    curves = read_curves(metrics_csv)
    shown = panels(curves)
    if not shown:
        raise UserError(f"{metrics_csv} has no values yet. Wait for the first logged step.")
    figure = draw_panels(shown, best_validation(curves))
    if output is not None:
        figure.savefig(output, dpi=DPI)
    return figure


def plot_neighbors(
    faces: Tensor,
    photos: Tensor,
    distances: Tensor,
    limit: float,
    titles: tuple[str, str] = ("new face", "nearest training photos"),
) -> Figure:
    """Plot a row for each sample: the sample, then its neighbors with their distances, red below the limit.

    Args:
        faces: samples (n, 3, R, R) uint8.
        photos: neighbors (n, k, 3, R, R) uint8.
        distances: (n, k).
        limit: distance below which a neighbor is suspicious.
        titles: titles of the first column and of the others.
    """
    number, count = photos.shape[:2]
    wide, high = 1.06, 1.24  # of a cell whose image is 1 x 1
    figure = Figure(figsize=(1.25 * wide * (count + 1), 1.25 * high * number + 0.35))
    axes = figure.subplots(gridspec_kw={"left": 0, "right": 1, "bottom": 0, "top": 1})
    axes.set(xlim=(-0.04, wide * (count + 1) - 0.02), ylim=(high * number + 0.02, -0.26))
    axes.axis("off")
    for line in range(number):
        for column, image in enumerate([faces[line], *photos[line]]):
            x, y = wide * column, high * line
            pixels = image.permute(1, 2, 0).numpy()
            axes.imshow(pixels, extent=(x, x + 1, y + 1, y), interpolation="nearest", aspect="auto")
            if column > 0:
                distance = float(distances[line, column - 1])
                style: dict[str, Any] = {"color": RED, "weight": "bold"} if distance < limit else {"color": "#2d3748"}
                axes.text(x + 0.5, y + 1.03, f"{distance:.3g}", ha="center", va="top", fontsize=9.5, **style)
    for column, title in enumerate(titles):
        axes.text(wide * column, -0.06, title, fontsize=10, va="bottom")
    return figure


def plot_distances(samples: dict[str, Tensor], limit: float) -> Figure:
    """Plot distances of samples to their nearest training images: a histogram of each, and the limit.

    Args:
        samples: distances (n,) by label.
        limit: marked distance.
    """
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    everything = torch.cat([*samples.values()])
    bins = np.linspace(0, float(everything.max()) * 1.02 + 1e-9, min(MAX_BINS, 5 + len(everything) // 10))
    for (label, values), color in zip(samples.items(), COLORS, strict=False):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values.numpy(), bins.tolist(), weights=weights, color=color, alpha=0.55, label=label)
    axes.axvline(limit, color=RED, linestyle=":", label=f"limit {limit:.3g}: 99 % of new images are above")
    label_axes(axes, "", "distance to the nearest training image", "% of them")
    axes.set_ylim(top=1.4 * axes.get_ylim()[1])  # room for the legend above the bars
    axes.legend(fontsize=8.5, frameon=False, loc="upper left")
    return figure


@torch.no_grad()
def visualize_random_input_output(
    vae: VAE, images: Tensor, output: str | Path, num_images: int = 8, seed: int = 0
) -> Tensor:
    """Write a PNG with rows of random images, their reconstructions, and the absolute error times four.

    Args:
        vae: the VAE.
        images: (n, 3, R, R) in [-1, 1] to choose from.
        output: PNG file to write.
        num_images: number of images.
        seed: seed of the choice.

    Returns:
        The three rows, (3 * num_images, 3, R, R) in [-1, 1], on the CPU.
    """
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:num_images]
    originals = images[chosen].to(vae.latent_mean.device)
    reconstructions = vae.decode(vae.encode(originals).mode())
    error = (4 * (reconstructions - originals).abs() - 1).clamp(max=1)
    rows = torch.cat([originals, reconstructions, error]).cpu()
    save_grid(rows, Path(output), columns=len(originals), source=EDITED)
    return rows
