"""How good new faces are, from features (n, d) of them and of real ones, whatever network gives these.

Everything goes through the features a few rows at a time, so that they may be mapped from disk, and all pairs of them
a square at a time: memory does not grow with their number.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024
HELD_OUT_SHARE = 0.01
COPIES = 1e-2
"""Photos nearer to one another than this share of what is usual are one picture."""


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of the two normal distributions with the features' means and covariances (Heusel et al. 2017).

    The trace of the root of the product comes from the eigenvalues of a symmetric matrix in float64: the usual general
    matrix root is wrong under some libraries. It is biased upwards, the more the fewer samples there are for d.
    """
    (mean, covariance), (other_mean, other_covariance) = moments(real), moments(fake)
    root = symmetric_root(covariance)
    product = root @ other_covariance @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * overlap
    return float((mean - other_mean).square().sum() + spread)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of features (n, d), in float64."""
    mean = sum(rows.double().sum(0) for rows in features.split(ROWS_AT_ONCE)) / len(features)
    assert isinstance(mean, Tensor)
    covariance = mean.new_zeros(len(mean), len(mean))
    for rows in features.split(ROWS_AT_ONCE):
        away = rows.double() - mean
        covariance += away.T @ away
    return mean, covariance / (len(features) - 1)


def symmetric_root(matrix: Tensor) -> Tensor:
    """The positive root of a symmetric matrix (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD, cubic kernel, all pairs (Binkowski et al. 2018, eq. 4): about 0 for samples of one kind."""

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
    """Shares of fakes among reals and of reals among fakes (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A sample is among others when it is nearer to one of them than that one's k-th nearest neighbour.
    """
    return among(fake, real, k), among(real, fake, k)


def among(inside: Tensor, others: Tensor, k: int) -> float:
    """Share of `inside` (n, d) in the manifold of `others` (m, d)."""
    radii = nearest(others, k=min(k, len(others) - 1)).distances[:, -1]
    hits = torch.zeros(len(inside), dtype=torch.bool, device=inside.device)
    for row, column, block in distances(inside, others):
        hits[row : row + len(block)] |= (block <= radii[column : column + block.shape[1]]).any(1)
    return float(hits.float().mean())


class Nearest(NamedTuple):
    """The k nearest of others for each of n samples, nearest first."""

    distances: Tensor
    """(n, k), in float64."""
    indices: Tensor
    """(n, k)."""


def nearest(samples: Tensor, others: Tensor | None = None, k: int = 1) -> Nearest:
    """The `k` nearest of `others` or, without any, of the other samples."""
    far = torch.full((len(samples), k), torch.inf, dtype=torch.float64, device=samples.device)
    best = Nearest(far, torch.zeros_like(far, dtype=torch.long))
    for row, column, block in distances(samples, samples if others is None else others):
        if others is None and row == column:
            block.fill_diagonal_(torch.inf)
        rows = slice(row, row + len(block))
        near = block.topk(min(k, block.shape[1]), largest=False)
        both = torch.cat([best.distances[rows], near.values], 1)
        numbers = torch.cat([best.indices[rows], near.indices + column], 1)
        best.distances[rows], order = both.topk(k, largest=False)
        best.indices[rows] = numbers.gather(1, order)
    return best


def distances(first: Tensor, second: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Euclidean distances in float64, a square at a time: its first row, its first column, itself."""
    for row in range(0, len(first), ROWS_AT_ONCE):
        rows = first[row : row + ROWS_AT_ONCE].double()
        for column in range(0, len(second), ROWS_AT_ONCE):
            yield row, column, torch.cdist(rows, second[column : column + ROWS_AT_ONCE].double())


class Memorisation(NamedTuple):
    """Distances of samples to the training images and to one another."""

    nearest: Nearest
    """Of each face its nearest training photos."""
    held_out: Tensor
    """Distance of each held-out photo to its nearest training photo: what is usual for faces that are new."""
    twins: Nearest
    """Of each of the first faces, as many as there are held-out photos, its nearest other one."""
    held_out_twins: Tensor
    """Likewise of the held-out photos: distances."""

    def cpu(self) -> "Memorisation":
        """Return the same on the CPU."""
        near, twins = (Nearest(found.distances.cpu(), found.indices.cpu()) for found in (self.nearest, self.twins))
        return Memorisation(near, self.held_out.cpu(), twins, self.held_out_twins.cpu())

    @property
    def limit(self) -> float:
        """Return the distance to the training images that 99 % of held-out images exceed."""
        return float(self.held_out.quantile(HELD_OUT_SHARE))

    @property
    def memorised(self) -> float:
        """Share of faces below that limit: 0.01 is what new ones score; 1 is a generator that repeats its photos."""
        return float((self.nearest.distances[:, 0] < self.limit).float().mean())

    @property
    def twin_limit(self) -> float:
        """Return the distance to one another that 99 % of held-out images exceed, without copies."""
        apart = self.held_out_twins[self.held_out_twins > COPIES * self.held_out_twins.median()]
        return float(apart.quantile(HELD_OUT_SHARE)) if len(apart) else 0.0

    @property
    def duplicates(self) -> float:
        """Share of faces nearer to another one than that, for as many faces as photos: 0.01 is what new ones score."""
        return float((self.twins.distances[:, 0] < self.twin_limit).float().mean())


def memorisation(fake: Tensor, train: Tensor, held_out: Tensor, k: int = 1) -> Memorisation:
    """Compare features (n, d) of new faces, of training photos, and of photos that nothing was trained on."""
    count = min(len(fake), len(held_out))
    return Memorisation(
        nearest(fake, train, k),
        nearest(held_out, train).distances[:, 0],
        nearest(fake[:count]),
        nearest(held_out[:count]).distances[:, 0],
    )


def generator_metrics(real: Tensor, fake: Tensor) -> dict[str, float]:
    """From features (n, d) of held-out photos and of new faces: two distances, precision and recall."""
    precision, recall = precision_and_recall(real, fake)
    return {
        "frechet_distance": frechet_distance(real, fake),
        "kernel_distance": kernel_distance(real, fake),
        "precision": precision,
        "recall": recall,
    }
