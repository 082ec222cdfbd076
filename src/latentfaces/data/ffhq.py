"""A pack as a dataset: single images for people, whole batches for training."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from latentfaces.data.rows import RowFile


class Draw(NamedTuple):
    """One picture of a batch: which, and whether mirrored."""

    item: int
    mirrored: bool


class FFHQDataset(Dataset[Tensor]):
    """Images (3, R, R) float in [-1, 1] by index; uint8 batches by `__getitems__`, which the loader calls.

    Args:
        images: (N, 3, R, R) uint8, in memory or on disk.
        indices: which of the N are in this dataset, in order.
    """

    def __init__(self, images: NDArray[np.uint8] | RowFile, indices: NDArray[np.int64]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return to_float(torch.from_numpy(self.images[self.indices[index]].copy()))

    def __getitems__(self, draws: Sequence[Draw]) -> Tensor:
        """A batch (b, 3, R, R) uint8: one gather, and a quarter of the bytes that floats would move."""
        batch = torch.from_numpy(self.images[self.indices[[draw.item for draw in draws]]])
        for image, draw in zip(batch, draws, strict=True):
            if draw.mirrored:
                image.copy_(image.flip(-1))
        return batch


class LatentDataset(Dataset[Tensor]):
    """Cached posteriors by batch: (b, 2, c, h, w) float16, mean and standard deviation.

    Args:
        moments: (N, 2, 2, c, h, w) float16: picture, as it is or mirrored, mean or standard deviation.
        indices: which of the N are in this dataset, in order.
    """

    def __init__(self, moments: NDArray[np.float16], indices: NDArray[np.int64]) -> None:
        self.moments, self.indices = moments, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.moments[self.indices[index], 0].copy())

    def __getitems__(self, draws: Sequence[Draw]) -> Tensor:
        indices = self.indices[[draw.item for draw in draws]]
        return torch.from_numpy(self.moments[indices, [int(draw.mirrored) for draw in draws]])


class TrainBatches(Sampler[list[Draw]]):
    """Endless epochs of shuffled whole batches; order and mirroring are functions of (seed, epoch, index) alone.

    Args:
        num_items: size of the dataset.
        batch_size: items a batch, per rank.
        seed: of order and mirroring.
        mirror: mirror half of the items, chosen anew each epoch.
        rank: this process; ranks share an epoch out without overlap.
        num_ranks: number of processes.
        epoch: the epoch that the next `iter` gives.
        start: the batch that it starts with, to go on in the middle of an epoch.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        mirror: bool,
        rank: int = 0,
        num_ranks: int = 1,
        epoch: int = 0,
        start: int = 0,
    ) -> None:
        self.num_items, self.batch_size, self.seed, self.mirror = num_items, batch_size, seed, mirror
        self.rank, self.num_ranks = rank, num_ranks
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.num_items // (self.batch_size * self.num_ranks)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, start = self.epoch, self.start
        self.epoch, self.start = epoch + 1, 0
        # Mixing the numbers in a seed sequence keeps neighbouring seeds and epochs unrelated.
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.num_items)
        mirrored = rng.random(self.num_items) < (0.5 if self.mirror else 0.0)
        for batch in range(start, len(self)):
            first = (batch * self.num_ranks + self.rank) * self.batch_size
            yield [Draw(int(i), bool(mirrored[i])) for i in order[first : first + self.batch_size]]


class ValBatches(Sampler[list[Draw]]):
    """The whole dataset once, in order, never mirrored, shared out over the ranks; the last batch may be smaller."""

    def __init__(self, num_items: int, batch_size: int, rank: int = 0, num_ranks: int = 1) -> None:
        self.batches = [
            [Draw(index, False) for index in range(first, min(first + batch_size, num_items))]
            for first in range(rank * batch_size, num_items, batch_size * num_ranks)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)


def to_float(images: Tensor, out: Tensor | None = None) -> Tensor:
    """uint8 -> float32 in [-1, 1], into `out` where given."""
    floats = images.to(torch.float32, copy=True) if out is None else out.copy_(images)
    return floats.div_(127.5).sub_(1)  # in place: fresh memory costs more than the sum


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, rounded, values outside clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
