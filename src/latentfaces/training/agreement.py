"""What ranks tell one another in each step, by their processors: the queue of no device is waited for."""

import functools
from typing import Any

import torch
import torch.distributed as dist


def greatest(value: float) -> float:
    """The greatest of all ranks' values, on all of them; all must ask. The value itself where there is one rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    told = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(told, dist.ReduceOp.MAX, group=processors(dist.group.WORLD))
    return float(told)


@functools.lru_cache(maxsize=1)
def processors(world: Any) -> Any:
    """A group of all ranks of `world` that needs no device."""
    return world if dist.get_backend(world) == "gloo" else dist.new_group(backend="gloo")
