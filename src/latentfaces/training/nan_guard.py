"""Steps whose loss or gradient is NaN or infinite: what they were made of, and whether they end training."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.ranks import is_main_process, to_be_read

NUM_NAMED = 8
SKIP = ", or skip such steps with on_nonfinite=skip"
Terms = Mapping[str, Tensor | float]
Photos = Callable[[], Sequence[str]]
"""The names of a batch's photos: looked up only where they are told."""


class NonFiniteError(UserError):
    """A loss or a gradient is NaN or infinite: training on would destroy the weights.

    Args:
        what: which, what it is, at which step, of which photos.
        remedy: besides the usual ones.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(
            f"{what}: training stops to protect the weights. Resume from the last checkpoint with resume=force and "
            f"a lower model.optimizer.lr{remedy}"
        )


@dataclass(frozen=True)
class BadBatch:
    """A batch of a step, as one rank tells the others of it."""

    terms: dict[str, float]
    """Those of its loss that are no numbers."""
    photos: list[str]


@dataclass
class Step:
    """Batches and gradient norms of a step, before the step is taken."""

    number: int = 0
    batches: list[tuple[Terms, Photos]] = field(default_factory=list)
    norms: dict[str, Callable[[], float]] = field(default_factory=dict)

    def bad_norms(self) -> dict[str, float]:
        """Return the non-finite norms, equal on all ranks."""
        return {name: value for name, read in self.norms.items() if not math.isfinite(value := read())}

    def suspects(self) -> list[BadBatch]:
        """This rank's batches that may be to blame: those whose loss is no number, or else all."""
        found = [BadBatch(bad_values(terms), list(photos())) for terms, photos in self.batches]
        return [suspect for suspect in found if suspect.terms] or found


class NonFiniteGuard:
    """Looks at the gradients' norms before steps are taken; what is no number ends training, or is left out.

    On a CPU a step is looked at before it is taken. On other devices it is when the next one comes, or before anything
    is saved, so that no step waits for the device; where steps are to be left out each of them waits.

    Args:
        on_nonfinite: "fail", or "skip" the step: weights, averages and the optimiser's state stay as they were.
        max_skipped_steps: so many at most.
    """

    def __init__(self, on_nonfinite: Literal["fail", "skip"] = "fail", max_skipped_steps: int = 10) -> None:
        self.on_nonfinite, self.max_skipped_steps = on_nonfinite, max_skipped_steps
        self.num_skipped = 0
        self.coming, self.unread = Step(), Step()
        self.left_out = False
        """Whether the last step was."""

    def add(self, terms: Terms, photos: Photos) -> None:
        """Note a batch of the coming step."""
        self.coming.batches.append(({k: v.detach() if isinstance(v, Tensor) else v for k, v in terms.items()}, photos))

    def refuse_terms(self, number: int, values: Mapping[str, float]) -> None:
        """Hold the terms of the batch that was added last against NaN and infinity, where that ends training.

        Raises:
            NonFiniteError: one of them is.
        """
        if self.on_nonfinite == "fail" and (bad := bad_values(values)):
            raise NonFiniteError(told({}, number, [BadBatch(bad, list(self.coming.batches[-1][1]()))]), SKIP)

    def close(self, number: int, norms: Mapping[str, Tensor | float | None], device: torch.device) -> None:
        """All batches of the coming step, of this number, are added, and these are the norms of its gradients.

        Raises:
            NonFiniteError: one of them is no number.
        """
        self.check()  # the step before
        self.coming.number = number
        self.coming.norms = {name: to_be_read(norm) for name, norm in norms.items() if norm is not None}
        self.unread, self.coming = self.coming, Step()
        self.left_out = False
        if device.type == "cpu" or self.on_nonfinite == "skip":
            self.check()

    def check(self) -> None:
        """Look at what has not been looked at yet.

        Raises:
            NonFiniteError: it is no number, and that ends training.
        """
        step, self.unread = self.unread, Step()
        if not (norms := step.bad_norms()):
            return
        what = told(norms, step.number, gathered_suspects(step.suspects()))
        if self.on_nonfinite == "fail":
            raise NonFiniteError(what, SKIP)
        if self.num_skipped >= self.max_skipped_steps:
            raise NonFiniteError(f"{what}, after max_skipped_steps={self.max_skipped_steps} that were left out")
        self.num_skipped += 1
        self.left_out = True
        if is_main_process():
            count = f"{self.num_skipped} of at most max_skipped_steps={self.max_skipped_steps}"
            print(f"WARNING: {what}: the step is left out ({count})", file=sys.stderr)


def bad_values(terms: Terms) -> dict[str, float]:
    """Return the non-finite terms."""
    return {name: value for name, term in terms.items() if not math.isfinite(value := float(term))}


def gathered_suspects(own: list[BadBatch]) -> list[BadBatch]:
    """Return the bad batches of all ranks. A collective: every rank must call it."""
    if not dist.is_initialized():
        return own
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    suspects = [suspect for part in parts for suspect in part]
    return [suspect for suspect in suspects if suspect.terms] or suspects


def told(norms: Mapping[str, float], number: int, suspects: Sequence[BadBatch]) -> str:
    """Describe which value is non-finite, at which step, in which images."""
    values: dict[str, float] = {}
    for suspect in suspects:
        values |= suspect.terms
    named = " and ".join(f"{name} is {value}" for name, value in (values or norms).items())
    photos = [photo for suspect in suspects for photo in suspect.photos]
    more = f" and {len(photos) - NUM_NAMED} more" if len(photos) > NUM_NAMED else ""
    batch = f", in a batch of {', '.join(photos[:NUM_NAMED])}{more}" if photos else ""
    return f"{named} at step {number}{batch}"
