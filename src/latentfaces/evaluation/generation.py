"""Metrics of generated images, from features (n, d) of them and of real images.

Features are read in blocks of rows and compared in blocks of pairs. They may be mapped from disk, and memory does not
grow with their number.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024
VALUES_AT_ONCE = 2**24
"""Values of one side of a block of pairs."""
HELD_OUT_FRACTION = 0.01
COPIES = 1e-2
"""Distances below this fraction of the median distance are between copies of one image."""


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of normal distributions with the means and covariances of the features (Heusel et al. 2017).

    The eigenvalues of a symmetric matrix in float64 give the trace of the root of the product. The usual general matrix
    root is wrong under some libraries. The distance is biased upwards, more so with fewer samples.
    """
    (mean, covariance), (other_mean, other_covariance) = moments(real), moments(fake)
    root = symmetric_root(covariance)
    product = root @ other_covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * overlap
    return float((mean - other_mean).square().sum() + spread)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (d,) and covariance (d, d) of features (n, d), in float64."""
    mean = sum(rows.double().sum(0) for rows in features.split(ROWS_AT_ONCE)) / len(features)
    assert isinstance(mean, Tensor)
    covariance = mean.new_zeros(len(mean), len(mean))
    for rows in features.split(ROWS_AT_ONCE):
        away = rows.double() - mean
        covariance += away.T @ away
    return mean, covariance / (len(features) - 1)


def symmetric_root(matrix: Tensor) -> Tensor:
    """Return the positive root of a symmetric matrix (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD, cubic kernel, all pairs (Binkowski et al. 2018, eq. 4); about 0 for equal distributions."""

    def total(a: Tensor, b: Tensor) -> float:
        return float(((a.double() @ b.double().T / a.shape[1] + 1) ** 3).sum())

    def within(samples: Tensor) -> float:
        pieces = samples.split(ROWS_AT_ONCE)
        above = sum(total(a, b) for number, a in enumerate(pieces) for b in pieces[number + 1 :])
        own = sum(total(a, a) - float(((a.double().square().mean(1) + 1) ** 3).sum()) for a in pieces)
        return (2 * above + own) / (len(samples) * (len(samples) - 1))

    across = sum(total(a, b) for a in real.split(ROWS_AT_ONCE) for b in fake.split(ROWS_AT_ONCE))
    return within(real) + within(fake) - 2 * across / (len(real) * len(fake))


def precision_and_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A sample is in the manifold of a set if it is nearer to one of its samples than that one's k-th nearest neighbor.
    """
    return fraction_within(fake, real, k), fraction_within(real, fake, k)


def fraction_within(samples: Tensor, others: Tensor, k: int) -> float:
    """Return the fraction of samples (n, d) in the manifold of others (m, d)."""
    radii = nearest(others, k=min(k, len(others) - 1)).distances[:, -1].to(samples.device)
    hits = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    for row, column, block in distances(samples, others):
        hits[row : row + len(block)] |= (block[..., 0] <= radii[column : column + block.shape[1]]).any(1)
    return float(hits.float().mean())


def density_and_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020). Density is 1 on average for equal distributions.

    The ball of a real sample reaches to its k-th nearest neighbor. Density is the mean number of balls around a fake
    sample, divided by k. Coverage is the fraction of balls around at least one fake sample.
    """
    k = min(k, len(real) - 1)
    radii = nearest(real, k=k).distances[:, -1:].to(real.device)
    hits = torch.zeros(len(real), dtype=torch.long, device=real.device)
    for row, _, block in distances(real, fake):
        # Strictly nearer, as in the code of the authors: the density of a set and itself is 1.
        hits[row : row + len(block)] += (block[..., 0] < radii[row : row + len(block)]).sum(1)
    return float(hits.sum()) / (k * len(fake)), float((hits > 0).float().mean())


class Rows(Protocol):
    """Rows (m, d), or (m, v, d) with v views of each item: a tensor, or an object that reads rows when indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


class Nearest(NamedTuple):
    """The k nearest items for each of n samples, nearest first."""

    distances: Tensor
    """(n, k), Euclidean, in float64."""
    indices: Tensor
    """(n, k)."""
    views: Tensor
    """(n, k), the nearest view of each item."""


def nearest(samples: Tensor, others: Rows | None = None, k: int = 1) -> Nearest:
    """Find the `k` nearest of `others` for samples (n, d). By default, `others` are the other samples.

    The result is on the CPU.
    """
    far = torch.full((len(samples), k), torch.inf, dtype=torch.float64, device=samples.device)
    best = Nearest(far, torch.zeros_like(far, dtype=torch.long), torch.zeros_like(far, dtype=torch.long))
    for row, column, block in distances(samples, samples if others is None else others):
        near, views = block.min(2)
        if others is None:
            near.diagonal(row - column).fill_(torch.inf)
        rows = slice(row, row + len(block))
        found = near.topk(min(k, near.shape[1]), largest=False)
        both = torch.cat([best.distances[rows], found.values], 1)
        indices = torch.cat([best.indices[rows], found.indices + column], 1)
        views = torch.cat([best.views[rows], views.gather(1, found.indices)], 1)
        best.distances[rows], order = both.topk(k, largest=False)
        best.indices[rows], best.views[rows] = indices.gather(1, order), views.gather(1, order)
    return Nearest(*(part.cpu() for part in best))


def distances(first: Tensor, second: Rows) -> Iterator[tuple[int, int, Tensor]]:
    """Yield blocks of Euclidean distances in float64: first row, first column, (rows, columns, views)."""
    at_once = min(ROWS_AT_ONCE, max(1, VALUES_AT_ONCE // max(1, second[:1].numel())))
    for row in range(0, len(first), ROWS_AT_ONCE):
        rows = first[row : row + ROWS_AT_ONCE].double()
        for column in range(0, len(second), at_once):
            columns = second[column : column + at_once].double()
            views = columns.reshape(-1, columns.shape[-1])
            yield row, column, torch.cdist(rows, views).unflatten(1, (len(columns), -1))


class Memorization(NamedTuple):
    """Distances of samples to the training images and to one another."""

    nearest: Nearest
    """Nearest training images of each sample."""
    held_out: Tensor
    """Distance of each held-out image to its nearest training image: the scale for new images."""
    twins: Nearest
    """Nearest other sample of each of the first samples, as many as held-out images."""
    held_out_twins: Tensor
    """Distance of each held-out image to its nearest other one."""

    @property
    def limit(self) -> float:
        """Return the distance to the training images that 99 % of held-out images exceed."""
        return usual_limit(self.held_out)

    @property
    def memorized_fraction(self) -> float:
        """Return the fraction of samples below that limit: 0.01 for new images, 1 for copies of training images."""
        return float((self.nearest.distances[:, 0] < self.limit).float().mean())

    @property
    def twin_limit(self) -> float:
        """Return the distance to one another that 99 % of held-out images exceed."""
        return usual_limit(self.held_out_twins)

    @property
    def duplicates(self) -> float:
        """Return the fraction of samples that are nearer to another one: 0.01 for as many new images."""
        return float((self.twins.distances[:, 0] < self.twin_limit).float().mean())


def usual_limit(distances: Tensor) -> float:
    """Return the distance that 99 % of `distances` (n,) exceed. Those of copies, near 0, do not count."""
    apart = distances[distances > COPIES * distances.median()]
    return float(apart.quantile(HELD_OUT_FRACTION)) if len(apart) else 0.0


def memorization(fake: Tensor, train: Rows, held_out: Tensor, k: int = 1) -> Memorization:
    """Compare features of samples (n, d), of training images (m, d) or (m, v, d), and of held-out images (l, d)."""
    count = min(len(fake), len(held_out))
    return Memorization(
        nearest(fake, train, k),
        nearest(held_out, train).distances[:, 0],
        nearest(fake[:count]),
        nearest(held_out[:count]).distances[:, 0],
    )


def generator_metrics(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return two distances, precision and recall, from features (n, d) of held-out images and of samples."""
    precision, recall = precision_and_recall(real, fake)
    return {
        "frechet_distance": frechet_distance(real, fake),
        "kernel_distance": kernel_distance(real, fake),
        "precision": precision,
        "recall": recall,
    }
