"""How good new faces are, from features (n, d) of them and of real ones, whatever network gives these."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of the two normal distributions with the features' means and covariances (Heusel et al. 2017).

    The trace of the root of the product comes from the eigenvalues of a symmetric matrix in float64: the usual general
    matrix root is wrong under some libraries. It is biased upwards, the more the fewer samples there are for d.
    """
    real, fake = real.double(), fake.double()
    root = symmetric_root(real.T.cov())
    product = root @ fake.T.cov() @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return float(
        (real.mean(0) - fake.mean(0)).square().sum() + real.T.cov().trace() + fake.T.cov().trace() - 2 * overlap
    )


def symmetric_root(matrix: Tensor) -> Tensor:
    """The positive root of a symmetric matrix (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD, cubic kernel, all pairs (Binkowski et al. 2018, eq. 4): about 0 for samples of one kind."""

    def total(a: Tensor, b: Tensor) -> float:
        return sum(float(((rows @ b.T / a.shape[1] + 1) ** 3).sum()) for rows in a.split(ROWS_AT_ONCE))

    def diagonal(a: Tensor) -> float:
        return float(((a.square().sum(1) / a.shape[1] + 1) ** 3).sum())

    real, fake = real.double(), fake.double()
    within = [(total(x, x) - diagonal(x)) / (len(x) * (len(x) - 1)) for x in (real, fake)]
    return sum(within) - 2 * total(real, fake) / (len(real) * len(fake))


def precision_and_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Shares of fakes among reals and of reals among fakes (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A sample is among others when it is nearer to one of them than that one's k-th nearest neighbour.
    """
    return among(fake, real, k), among(real, fake, k)


def among(inside: Tensor, others: Tensor, k: int) -> float:
    """Share of `inside` (n, d) in the manifold of `others` (m, d)."""
    radii = torch.cat([d.kthvalue(min(k + 1, len(others)), dim=1).values for d in distances(others, others)])
    hits = [(d <= radii).any(1) for d in distances(inside, others)]
    return float(torch.cat(hits).float().mean())


def memorised(fake: Tensor, train: Tensor, held_out: Tensor, share: float = 0.01) -> float:
    """Share of fakes nearer to a training sample than all but the nearest `share` of held-out samples are.

    `share` is what new faces score; 1 is a generator that repeats its training set.
    """
    limit = nearest_distances(held_out, train).quantile(share)
    return float((nearest_distances(fake, train) < limit).float().mean())


def duplicates(fake: Tensor, held_out: Tensor) -> float:
    """Share of fakes nearer to another fake than any held-out sample is to another, for as many of them."""
    count = min(len(fake), len(held_out))
    limit = nearest_distances(held_out[:count]).min()
    return float((nearest_distances(fake[:count]) < limit).float().mean())


def nearest_distances(samples: Tensor, others: Tensor | None = None) -> Tensor:
    """Distance (n,) of each sample to its nearest of `others` or, without any, of the other samples."""
    if others is not None:
        return torch.cat([d.min(1).values for d in distances(samples, others)])
    return torch.cat([d.kthvalue(2, dim=1).values for d in distances(samples, samples)])


def distances(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """Euclidean distances (some, m) in float64, a few rows at a time."""
    for rows in first.double().split(ROWS_AT_ONCE):
        yield torch.cdist(rows, second.double())


def generator_metrics(real: Tensor, fake: Tensor, train: Tensor | None = None) -> dict[str, float]:
    """All of them: features (n, d) of held-out photos, of new faces and, if given, of training photos."""
    precision, recall = precision_and_recall(real, fake)
    values = {
        "frechet_distance": frechet_distance(real, fake),
        "kernel_distance": kernel_distance(real, fake),
        "precision": precision,
        "recall": recall,
        "duplicates": duplicates(fake, real),
    }
    return values if train is None else {**values, "memorised": memorised(fake, train, real)}
