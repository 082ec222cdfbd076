"""Guard against steps with a loss or gradient that is NaN or infinite."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.ranks import deferred_read, is_main_process

NUM_NAMED = 8
SKIP = ", or skip such steps with on_nonfinite=skip"
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


class BadBatch(NamedTuple):
    """Non-finite loss terms of a batch, and the names of its images."""

    terms: dict[str, float]
    images: list[str]


@dataclass
class Step:
    """Batches and gradient norms of a step."""

    number: int = 0
    batches: list[tuple[Terms, ImageNames]] = field(default_factory=list)
    norms: dict[str, Callable[[], float]] = field(default_factory=dict)

    def bad_norms(self) -> dict[str, float]:
        """Return the non-finite norms, equal on all ranks."""
        return {name: value for name, read in self.norms.items() if not math.isfinite(value := read())}

    def bad_batches(self) -> list[BadBatch]:
        """Return the batches with a non-finite loss, or else all. A collective: every rank must call it."""
        found = [
            BadBatch({key: float(v) for key, v in terms.items() if not math.isfinite(float(v))}, list(names()))
            for terms, names in self.batches
        ]
        found = [batch for batch in found if batch.terms] or found
        if dist.is_initialized():
            parts: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(parts, found)
            found = [batch for part in parts for batch in part]
        return [batch for batch in found if batch.terms] or found


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
        self.coming, self.unread = Step(), Step()
        self.skipped = False
        """True if the last step was skipped."""

    def add(self, terms: Terms, names: ImageNames) -> None:
        """Add a batch of the coming step."""
        self.coming.batches.append(({k: v.detach() if isinstance(v, Tensor) else v for k, v in terms.items()}, names))

    def close(self, number: int, norms: Mapping[str, Tensor | float | None], device: torch.device) -> None:
        """Complete the coming step, of this number, with its gradient norms.

        Raises:
            NonFiniteError: see `check`.
        """
        self.check()  # the step before
        self.coming.number = number
        self.coming.norms = {name: deferred_read(norm) for name, norm in norms.items() if norm is not None}
        self.unread, self.coming = self.coming, Step()
        self.skipped = False
        if device.type == "cpu" or self.on_nonfinite == "skip":
            self.check()

    def check(self) -> None:
        """Check the last step, if it was not checked yet.

        Raises:
            NonFiniteError: a norm is not finite, and the step may not be skipped.
        """
        step, self.unread = self.unread, Step()
        if not (norms := step.bad_norms()):
            return
        what = describe(norms, step.number, step.bad_batches())
        if self.on_nonfinite == "fail":
            raise NonFiniteError(what, SKIP)
        if self.num_skipped >= self.max_skipped_steps:
            raise NonFiniteError(f"{what}, after max_skipped_steps={self.max_skipped_steps} skipped steps")
        self.num_skipped += 1
        self.skipped = True
        if is_main_process():
            count = f"{self.num_skipped} of at most max_skipped_steps={self.max_skipped_steps}"
            print(f"WARNING: {what}: the step is skipped ({count})", file=sys.stderr)


def describe(norms: Mapping[str, float], number: int, batches: Sequence[BadBatch]) -> str:
    """Describe which value is non-finite, at which step, in which images."""
    values = {name: value for batch in batches for name, value in batch.terms.items()}
    named = " and ".join(f"{name} is {value}" for name, value in (values or norms).items())
    images = [name for batch in batches for name in batch.images]
    more = f" and {len(images) - NUM_NAMED} more" if len(images) > NUM_NAMED else ""
    where = f", in a batch of {', '.join(images[:NUM_NAMED])}{more}" if images else ""
    return f"{named} at step {number}{where}"
