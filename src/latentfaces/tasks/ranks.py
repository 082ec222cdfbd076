"""Several processes that share out one task, as `torchrun --nproc-per-node 4 sample.py ...` starts them."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""For one another; where one has failed, torchrun ends them all."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its task.

    Args:
        rank: its number.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def started(cls) -> "Ranks":
        """Those that torchrun started, each with a GPU of its own where there are any; else this process alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, total: int) -> range:
        """Which of so many things are this process's: as many as any other's, give or take one, in one piece."""
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def rounds(self, numbers: range, size: int) -> list[range]:
        """This process's parts of so many things that all go through together, each taking `size` at a time, in order.

        There are as many parts on every process; in the last round some may be smaller, or empty.
        """
        firsts = range(0, len(numbers), size * self.count)
        return [numbers[first + self.rank * size :][:size] for first in firsts]

    def wait(self) -> None:
        """For the others."""
        if self.count > 1:
            dist.barrier()

    def agree(self, value: T) -> T:
        """The first one's value."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def join(self, tensor: Tensor) -> Tensor:
        """All tensors (n, ...), one below the other, at the first process; elsewhere its own."""
        if self.count == 1:
            return tensor
        parts: list[Tensor] | None = [tensor] * self.count if self.rank == 0 else None
        dist.gather_object(tensor, parts)
        return tensor if parts is None else torch.cat(parts)
