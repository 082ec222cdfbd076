"""Memory for batches, used again and again."""

import weakref
from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class BatchMemory:
    """Lends memory for batches of rows; what nobody refers to any more is lent again.

    A system hands out fresh memory page by page of 4 kB, which for pictures takes as long as reading them.

    Args:
        shape: of a row of bytes.
        pinned: locked in memory, from where a GPU copies while the CPU goes on.
        kept: how many pieces that are free are kept.
    """

    def __init__(self, shape: tuple[int, ...], pinned: bool = False, kept: int = 4) -> None:
        self.shape, self.pinned = shape, pinned
        self.free: deque[NDArray[np.uint8]] = deque(maxlen=kept)

    def lend(self, count: int) -> Tensor:
        """(count, *shape) uint8, of any content."""
        if self.pinned:  # torch keeps such memory itself, and knows when a copy out of it is over
            return torch.empty((count, *self.shape), dtype=torch.uint8, pin_memory=True)
        try:
            whole = self.free.pop()
        except IndexError:
            whole = np.empty((0, *self.shape), np.uint8)
        if len(whole) < count:
            whole = np.empty((count, *self.shape), np.uint8)
        lent = whole[:count]
        # The tensor's storage refers to this very array for as long as any view of the tensor lives.
        weakref.finalize(lent, self.free.append, whole).atexit = False
        return torch.from_numpy(lent)
