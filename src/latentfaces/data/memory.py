"""Memory for batches that is used again, rather than fresh memory, whose pages the system clears first."""

import math
import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

KEPT = 3
"""Blocks: one batch is used, one is ready, one is being read."""


class BatchMemory:
    """Gives uint8 tensors whose memory served before, once no tensor has it any more; who keeps a batch keeps it whole.

    With a GPU the memory is pinned, and torch's own allocator waits until the copy to the device is done.
    """

    def __init__(self) -> None:
        self.blocks: list[tuple[NDArray[np.uint8], weakref.ref[NDArray[np.uint8]]]] = []
        self.lock = threading.Lock()

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of this shape, with anything in it."""
        if torch.cuda.is_available() and get_worker_info() is None:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        size = math.prod(shape)
        with self.lock:
            free = [block for block, loan in self.blocks if loan() is None and len(block) == size]
            block = free[0] if free else np.empty(size, np.uint8)
            loan = block[:]  # lives as long as any tensor on this memory, in whatever view
            others = [each for each in self.blocks if each[0] is not block]
            self.blocks = [*others, (block, weakref.ref(loan))][-KEPT:]
        return torch.from_numpy(loan).view(shape)

    def __reduce__(self) -> tuple[type["BatchMemory"], tuple[()]]:
        """Worker processes have their own."""
        return BatchMemory, ()
