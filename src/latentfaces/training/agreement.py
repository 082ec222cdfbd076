"""What ranks tell one another in each step, so that all of them do the same at the same step."""

from collections.abc import Callable

import torch
import torch.distributed as dist

from latentfaces.training.finite_steps import to_be_read


def num_ranks() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def greatest(value: float, device: torch.device) -> Callable[[], float]:
    """Reads the greatest of all ranks' values, on all of them; all must ask. The value itself where there is one rank.

    Args:
        value: this rank's.
        device: this rank's, which the reading, and not the asking, waits for.
    """
    if num_ranks() == 1:
        return lambda: value
    told = torch.full((), value, dtype=torch.float64, device=device)  # a copy from here would wait for the device
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return to_be_read(told)


class StepByStep:
    """`greatest` in each step: on a GPU what was asked a step before, so that no step waits for the device."""

    def __init__(self) -> None:
        self.coming: Callable[[], float] | None = None

    def greatest(self, value: float, device: torch.device) -> float:
        """Of all ranks' values, now or a step ago, the same on all."""
        before, self.coming = self.coming, greatest(value, device)
        if before is None or device.type == "cpu" or num_ranks() == 1:
            return self.coming()
        return before()
