"""Processes that work together: which one this is, how they share out a task, and what they decide as one."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""Time limit of a collective in sampling; torchrun ends all ranks when one fails."""
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "GROUP_RANK", "SLURM_PROCID")
"""Environment variables by which launchers number their processes."""


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
        """Return the ranks that torchrun started, each with its GPU if there is one; else this process alone."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo", timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, total: int) -> range:
        """Return the contiguous range of `total` items that this process handles; sizes differ by at most one."""
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


def is_main_process() -> bool:
    """Return whether this process prints and writes: rank 0, or the only one."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return not any(int(os.environ.get(name) or 0) for name in RANK_VARIABLES)


def num_ranks() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_max(value: float, device: torch.device) -> Callable[[], float]:
    """Return a function that reads the maximum of all ranks' values. A collective: every rank must call it.

    Args:
        value: this rank's.
        device: this rank's, which the reading, and not the asking, waits for.
    """
    if num_ranks() == 1:
        return lambda: value
    told = torch.full((), value, dtype=torch.float64, device=device)  # a copy from here would wait for the device
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return to_be_read(told)


class DelayedAllReduce:
    """`all_reduce_max` in each step: on a GPU what was asked a step before, so that no step waits for the device."""

    def __init__(self) -> None:
        self.coming: Callable[[], float] | None = None

    def all_reduce_max(self, value: float, device: torch.device) -> float:
        """Return the maximum of all ranks' values, of this step or the one before, equal on all ranks."""
        before, self.coming = self.coming, all_reduce_max(value, device)
        if before is None or device.type == "cpu" or num_ranks() == 1:
            return self.coming()
        return before()


def to_be_read(value: Tensor | float) -> Callable[[], float]:
    """Reads a scalar of a device, later, and waits for what the device had to do until now, but for nothing since."""
    if not isinstance(value, Tensor) or value.device.type != "cuda":
        return lambda: float(value)
    copy = value.detach().to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> float:
        copied.synchronize()
        return float(copy)

    return read


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor; where it is sharded, all ranks must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The rows that this rank has, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
