"""Ranks: which process this is, how ranks share work, and collective decisions."""

import atexit
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
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "GROUP_RANK", "SLURM_PROCID")
"""Environment variables by which launchers number their processes."""
TIMEOUT = timedelta(days=1)
"""Time-out of collectives of sampling. If a rank fails, torchrun ends all of them."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, and the number of ranks.

    Args:
        rank: from 0.
        count: number of ranks.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def started(cls) -> "Ranks":
        """Return the rank that torchrun started, with its GPU if there is one, or a single rank."""
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo", timeout=TIMEOUT)
        atexit.register(destroy_process_group)
        return cls(dist.get_rank(), dist.get_world_size())

    def rounds(self, numbers: range, size: int) -> list[range]:
        """Return this rank's part of each round, in which each rank takes `size` of the numbers in order.

        All ranks have the same number of rounds. Parts of the last round may be smaller, or empty.
        """
        firsts = range(0, len(numbers), size * self.count)
        return [numbers[first + self.rank * size :][:size] for first in firsts]

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.count > 1:
            dist.barrier()

    def agree(self, value: T) -> T:
        """Return the value of rank 0."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def join(self, tensor: Tensor) -> Tensor:
        """Concatenate the tensors (n, ...) of all ranks on rank 0. Other ranks get their own."""
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


def destroy_process_group() -> None:
    """Destroy the process group, if there is one. At exit Lightning does so for NCCL, but not for gloo."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce_max(value: float, device: torch.device) -> Callable[[], float]:
    """Return a function that reads the maximum over ranks. A collective: every rank must call it.

    Args:
        value: value of this rank.
        device: device of this rank. Only the returned function waits for it.
    """
    if num_ranks() == 1:
        return lambda: value
    maximum = torch.full((), value, dtype=torch.float64, device=device)  # copying from the CPU would synchronize
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return deferred_read(maximum)


class DelayedAllReduce:
    """`all_reduce_max` in each step. On a GPU it returns the result of the last step, so that no step waits."""

    def __init__(self) -> None:
        self.pending: Callable[[], float] | None = None

    def all_reduce_max(self, value: float, device: torch.device) -> float:
        """Return the maximum over ranks, of this step or the last one. Equal on all ranks."""
        last, self.pending = self.pending, all_reduce_max(value, device)
        if last is None or device.type == "cpu" or num_ranks() == 1:
            return self.pending()
        return last()


def deferred_read(value: Tensor | float) -> Callable[[], float]:
    """Return a function that reads a scalar. It waits for the work that is queued on the device now, not for more."""
    if not isinstance(value, Tensor) or value.device.type != "cuda":
        return lambda: float(value)
    copy = value.detach().to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> float:
        copied.synchronize()
        return float(copy)

    return read


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all rows of a tensor. If it is sharded, every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a tensor, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
