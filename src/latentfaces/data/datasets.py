"""Datasets of images and of latents, and the order of their batches."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from latentfaces.data.images import to_float


class Draws(NamedTuple):
    """Indices and mirror flags of a batch."""

    items: NDArray[np.int64]
    """(b,) indices in the dataset."""
    mirrored: NDArray[np.bool_]
    """(b,) which of them are mirrored."""


class ImageBatch(NamedTuple):
    """Images that `to_float` mirrors and converts on the device."""

    images: Tensor
    """(b, 3, R, R) uint8, a quarter of the bytes of float32."""
    mirrored: Tensor
    """(b,) bool."""
    rows: NDArray[np.int64]
    """(b,) indices in the pack."""


class LatentBatch(NamedTuple):
    """Cached posteriors."""

    moments: Tensor
    """(b, 2, c, h, w) float16: mean and std."""
    rows: NDArray[np.int64]
    """(b,) indices of the images in the pack."""
    labels: Tensor | None = None
    """(b, L) float32, NaN where missing; None without labels."""


class FFHQDataset(Dataset[Tensor]):
    """Images (3, R, R) float in [-1, 1] by index. The loader calls `__getitems__` for an `ImageBatch`.

    Args:
        images: (N, 3, R, R) uint8, in memory or mapped.
        indices: which of the N are in this dataset, in order.
    """

    def __init__(self, images: NDArray[np.uint8], indices: NDArray[np.int64]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return to_float(torch.from_numpy(self.images[self.indices[index]].copy()))

    def __getitems__(self, draws: Draws) -> ImageBatch:
        rows = self.indices[draws.items]
        return ImageBatch(torch.from_numpy(self.images[rows]), torch.from_numpy(draws.mirrored), rows)


class LatentDataset(Dataset[Tensor]):
    """Cached posteriors (2, c, h, w) float16 by index. The loader calls `__getitems__` for a `LatentBatch`.

    Args:
        moments: (N, V, 2, c, h, w) float16, in memory or mapped: unchanged and, if V is 2, mirrored.
        indices: which of the N images are in this dataset, in order.
        labels: (N, L) float32, or None. A mirrored image has the same labels.
    """

    def __init__(
        self,
        moments: NDArray[np.float16],
        indices: NDArray[np.int64],
        labels: NDArray[np.float32] | None = None,
    ) -> None:
        self.moments, self.indices, self.labels = moments, indices, labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.moments[self.indices[index], 0].copy())

    def __getitems__(self, draws: Draws) -> LatentBatch:
        rows = self.indices[draws.items]
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        return LatentBatch(torch.from_numpy(self.moments[rows, draws.mirrored.view(np.uint8)]), rows, labels)


class TrainBatches(Sampler[Draws]):
    """Endless epochs of shuffled full batches. Order and mirroring depend only on (seed, epoch, index).

    A position is a number of items, not of batches. A run that resumes with another batch size or number of ranks
    then neither skips nor repeats items.

    Args:
        num_items: size of the dataset.
        batch_size: items per batch and rank.
        seed: seed of order and mirroring.
        mirror: mirror a random half of the items in each epoch.
        rank: this process; ranks get disjoint batches.
        num_ranks: number of processes.
        accumulate: batches per optimizer step; the number of batches is truncated to a multiple of it.
        epoch: the epoch of the first `iter`.
        taken: items of that epoch that were taken before.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        mirror: bool,
        rank: int = 0,
        num_ranks: int = 1,
        accumulate: int = 1,
        epoch: int = 0,
        taken: int = 0,
    ) -> None:
        self.num_items, self.batch_size, self.seed, self.mirror = num_items, batch_size, seed, mirror
        self.rank, self.num_ranks, self.accumulate, self.epoch = rank, num_ranks, accumulate, epoch
        if taken and not self.num_batches(num_items - taken):
            self.epoch, taken = epoch + 1, 0
        # Batches of an epoch are numbered so that the last one always has the number len(self) - 1.
        self.first = len(self) - self.num_batches(num_items - taken)
        self.offset = taken - self.first * batch_size * num_ranks
        self.started = False

    def num_batches(self, num_items: int) -> int:
        """Return the number of batches in full optimizer steps of some items."""
        return num_items // (self.batch_size * self.num_ranks * self.accumulate) * self.accumulate

    def __len__(self) -> int:
        return self.num_batches(self.num_items)

    def taken(self, num_batches: int) -> int:
        """Return the items of this epoch that were taken when `num_batches` batches are over."""
        return self.offset + num_batches * self.batch_size * self.num_ranks

    def __iter__(self) -> Iterator[Draws]:
        if self.started:
            self.epoch, self.first, self.offset = self.epoch + 1, 0, 0
        self.started = True
        # Mixing the numbers in a seed sequence keeps neighboring seeds and epochs unrelated.
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.num_items)
        mirrored = rng.random(self.num_items) < (0.5 if self.mirror else 0.0)
        for batch in range(self.first, len(self)):
            start = self.taken(batch) + self.rank * self.batch_size
            items = order[start : start + self.batch_size]
            yield Draws(items, mirrored[items])


class ValBatches(Sampler[Draws]):
    """All items once, in order, not mirrored, over the ranks. The last batch may be smaller."""

    def __init__(self, num_items: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> None:
        together = batch_size * num_ranks
        rounds = [np.arange(first, min(first + together, num_items)) for first in range(0, num_items, together)]
        if len(rounds) > 1 and len(rounds[-1]) < num_ranks:
            rounds[-2:] = [np.concatenate(rounds[-2:])]
        # The last round is split evenly: ranks that wait for each other need the same number of batches.
        items = [np.array_split(each, num_ranks)[rank] for each in rounds]
        self.batches = [Draws(batch, np.zeros(len(batch), bool)) for batch in items if len(batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Draws]:
        return iter(self.batches)
