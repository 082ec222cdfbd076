"""Plots of the samples that are most likely copies."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from latentfaces.data.pack import Pack
from latentfaces.evaluation.generation import Memorization
from latentfaces.evaluation.plots import plot_distances, plot_neighbors

NUM_SUSPECTS, NUM_NEIGHBORS = 8, 4
"""Samples plotted with their nearest training images, and the number of these; half as many pairs of samples."""


def suspicious(result: Memorization, make: Callable[[Sequence[int]], Tensor], pack: Pack) -> list[Figure]:
    """Plot all distances, the samples nearest to training images, and the samples nearest to one another.

    Distances that 99 % of held-out images exceed are red.
    """
    near, twins = result.nearest, result.twins
    worst = near.distances[:, 0].argsort()[:NUM_SUSPECTS]
    samples = make(worst.tolist())
    images = train_images(pack, pack.train_indices[near.indices[worst].numpy()], near.views[worst] == 1)
    histograms = {"new faces": near.distances[:, 0], "held-out images": result.held_out}
    closest = twins.distances[:, 0].argsort()[: 2 * NUM_SUSPECTS].tolist()
    pairs = {tuple(sorted((n, int(twins.indices[n, 0])))) for n in closest}
    distance = {pair: float(twins.distances[list(pair), 0].max()) for pair in pairs}
    shown = sorted(distance, key=distance.__getitem__)[: NUM_SUSPECTS // 2]
    both = make([number for pair in shown for number in pair]).unflatten(0, (-1, 2))
    apart = torch.tensor([[distance[pair]] for pair in shown])
    titles = ("new face", "another new face")
    return [
        plot_distances(histograms, result.limit),
        plot_neighbors(samples, images, near.distances[worst], result.limit),
        plot_neighbors(both[:, 0], both[:, 1:], apart, result.twin_limit, titles=titles),
    ]


def train_images(pack: Pack, indices: NDArray[np.int64], mirrored: Tensor) -> Tensor:
    """Return images (..., 3, R, R) uint8 of a pack for indices (...), flipped where `mirrored` (...)."""
    images = torch.from_numpy(pack.images[indices])
    return torch.where(mirrored[..., None, None, None], images.flip(-1), images)
