"""Guard against steps with a loss or gradient that is NaN or infinite."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.ranks import deferred_read, is_main_process

NUM_NAMED = 8
Terms = Mapping[str, Tensor | float]
ImageNames = Callable[[], Sequence[str]]
"""Returns the names of a batch's images. It is called only for an error message."""


class NonFiniteError(UserError):
    """A loss or a gradient is NaN or infinite. Further training would destroy the weights.

    Args:
        what: name, value, step and images.
        remedy: added to the advice.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(
            f"{what}: training stops to protect the weights. Resume from the last checkpoint with resume=force and "
            f"a lower model.optimizer.lr{remedy}"
        )


Batch = tuple[Terms, ImageNames]
BadBatch = tuple[dict[str, float], list[str]]
"""Non-finite loss terms of a batch, and the names of its images."""


class NonFiniteGuard:
    """Check the gradient norms of each step. End training, or skip the step, if one is not finite.

    On a CPU it checks before the step is taken. On a GPU it checks at the next step, or before anything is saved, so
    that no step waits for the device. With `on_nonfinite="skip"` each step waits.

    Args:
        on_nonfinite: "fail", or "skip" the step: weights, averages and the optimizer's state stay as they were.
        max_skipped_steps: largest number of skipped steps.
    """

    def __init__(self, on_nonfinite: Literal["fail", "skip"] = "fail", max_skipped_steps: int = 10) -> None:
        self.on_nonfinite, self.max_skipped_steps = on_nonfinite, max_skipped_steps
        self.num_skipped = 0
        self.batches: list[Batch] = []
        """Batches of the coming step."""
        self.unread: tuple[int, list[Batch], dict[str, Callable[[], float]]] | None = None
        """Number, batches and gradient norms of a step that was not checked yet."""
        self.skipped = False
        """True if the last step was skipped."""

    def add(self, terms: Terms, names: ImageNames) -> None:
        """Add a batch of the coming step."""
        self.batches.append(({k: v.detach() if isinstance(v, Tensor) else v for k, v in terms.items()}, names))

    def close(self, number: int, norms: Mapping[str, Tensor | float | None], device: torch.device) -> None:
        """Complete the coming step, of this number, with its gradient norms.

        Raises:
            NonFiniteError: see `check`.
        """
        self.check()  # the step before
        reads = {name: deferred_read(norm) for name, norm in norms.items() if norm is not None}
        self.unread, self.batches = (number, self.batches, reads), []
        self.skipped = False
        if device.type == "cpu" or self.on_nonfinite == "skip":
            self.check()

    def check(self) -> None:
        """Check the last step, if it was not checked yet.

        Raises:
            NonFiniteError: a norm is not finite, and the step may not be skipped.
        """
        if self.unread is None:
            return
        (number, batches, reads), self.unread = self.unread, None
        norms = {name: value for name, read in reads.items() if not math.isfinite(value := read())}
        if not norms:  # equal on all ranks
            return
        what = describe(norms, number, bad_batches(batches))
        if self.on_nonfinite == "fail":
            raise NonFiniteError(what, ", or skip such steps with on_nonfinite=skip")
        if self.num_skipped >= self.max_skipped_steps:
            raise NonFiniteError(f"{what}, after max_skipped_steps={self.max_skipped_steps} skipped steps")
        self.num_skipped += 1
        self.skipped = True
        if is_main_process():
            count = f"{self.num_skipped} of at most max_skipped_steps={self.max_skipped_steps}"
            print(f"WARNING: {what}: the step is skipped ({count})", file=sys.stderr)


def bad_batches(batches: Sequence[Batch]) -> list[BadBatch]:
    """Return the batches with a non-finite loss, or else all. A collective: every rank must call it."""
    found: list[BadBatch] = [
        ({key: float(v) for key, v in terms.items() if not math.isfinite(float(v))}, list(names()))
        for terms, names in batches
    ]
    if dist.is_initialized():
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, found)
        found = [batch for part in parts for batch in part]
    return [batch for batch in found if batch[0]] or found


def describe(norms: Mapping[str, float], number: int, batches: Sequence[BadBatch]) -> str:
    """Describe which value is non-finite, at which step, in which images."""
    values = {name: value for terms, _ in batches for name, value in terms.items()}
    named = " and ".join(f"{name} is {value}" for name, value in (values or norms).items())
    images = [name for _, names in batches for name in names]
    more = f" and {len(images) - NUM_NAMED} more" if len(images) > NUM_NAMED else ""
    where = f", in a batch of {', '.join(images[:NUM_NAMED])}{more}" if images else ""
    return f"{named} at step {number}{where}"
