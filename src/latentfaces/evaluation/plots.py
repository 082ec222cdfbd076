"""Pictures of a run."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.errors import UserError
from latentfaces.evaluation.grids import save_grid
from latentfaces.evaluation.panels import COLOURS, best_validation, draw_panels, lettered, panels, read_curves

DPI = 120
MAX_BINS = 40


def plot_losses(metrics_csv: str | Path, output: str | Path | None = None) -> Figure:
    """Every logged value over training steps: losses and their terms, quality, schedules, gradients, latents.

    Training and validation share a panel; the annealed weights and the learning rate are beside them; the validation
    with the lowest loss is marked in all.

    Args:
        metrics_csv: a run's metrics.csv.
        output: where to write the picture, if anywhere.

    Raises:
        UserError: nothing was logged yet.
    """
    curves = read_curves(metrics_csv)
    shown = panels(curves)
    if not shown:
        raise UserError(f"{metrics_csv} holds no values yet")
    figure = draw_panels(shown, best_validation(curves))
    if output is not None:
        figure.savefig(output, dpi=DPI)
    return figure


def plot_neighbours(
    faces: Tensor,
    photos: Tensor,
    distances: Tensor,
    limit: float,
    output: str | Path | None = None,
    titles: tuple[str, str] = ("new face", "nearest training photos"),
) -> Figure:
    """A line for each face: the face, then photos of which each has its distance below, red where it is suspicious.

    Args:
        faces: (n, 3, R, R) uint8.
        photos: (n, k, 3, R, R) uint8.
        distances: (n, k).
        limit: below it, a distance is suspicious.
        output: where to write the picture, if anywhere.
        titles: of the first column and of the others.
    """
    number, count = photos.shape[:2]
    figure = Figure(figsize=(1.35 * (count + 1) + 0.2, 1.55 * number + 0.3), layout="constrained")
    axes = figure.subplots(number, count + 1, squeeze=False)
    for line, face, near, far in zip(axes, faces, photos, distances.tolist(), strict=True):
        for place, image in zip(line, [face, *near], strict=True):
            place.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
        for place, distance in zip(line[1:], far, strict=True):
            close = distance < limit
            place.set_xlabel(
                f"{distance:.3g}",
                fontsize=9,
                color="#c53030" if close else "#2d3748",
                fontweight="bold" if close else "normal",
            )
    axes[0, 0].set_title(titles[0], fontsize=10, loc="left")
    axes[0, 1].set_title(titles[1], fontsize=10, loc="left")
    if output is not None:
        figure.savefig(output, dpi=DPI)
    return figure


def plot_distances(samples: dict[str, Tensor], limit: float, output: str | Path | None = None) -> Figure:
    """How far some samples are from their nearest training photo: a histogram of each, and the limit.

    Args:
        samples: distances (n,) by label.
        limit: what is marked.
        output: where to write the picture, if anywhere.
    """
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    everything = torch.cat([*samples.values()])
    bins = np.linspace(0, float(everything.max()) * 1.02 + 1e-9, min(MAX_BINS, 5 + len(everything) // 10))
    for (label, values), colour in zip(samples.items(), COLOURS, strict=False):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(values.numpy(), bins, weights=weights, color=colour, alpha=0.55, label=label)
    axes.axvline(limit, color="#c53030", linestyle=":", label=f"limit {limit:.3g}: 99 % of new photos lie beyond")
    lettered(axes, "", "distance to the nearest training photo", "% of them")
    axes.legend(fontsize=8.5, frameon=False)
    if output is not None:
        figure.savefig(output, dpi=DPI)
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
        The three rows, (3 * num_images, 3, R, R) in [-1, 1], on the CPU.
    """
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:num_images]
    originals = images[chosen].to(vae.latent_mean.device)
    reconstructions = vae.decode(vae.encode(originals).mode())
    error = (4 * (reconstructions - originals).abs() - 1).clamp(max=1)
    rows = torch.cat([originals, reconstructions, error]).cpu()
    save_grid(rows, Path(output), columns=len(originals))
    return rows
