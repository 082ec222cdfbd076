"""Schedules: functions of the training step (and, for the learning rate, of how far training has come)."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AnnealingSchedule(ABC):
    """From `start` at step 0 to `end` at step `num_steps`, and `end` ever after.

    Args:
        start: value at step 0.
        end: value that the schedule comes to rest at.
        num_steps: length of the way, in training steps.
    """

    start: float = 0.0
    end: float = 1.0
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} must be at least 1")

    def __call__(self, step: int) -> float:
        """The value at training step `step` >= 0."""
        return self.start + (self.end - self.start) * self.shape(min(step / self.num_steps, 1.0))

    @abstractmethod
    def shape(self, x: float) -> float:
        """How far along, from 0 at x = 0 to 1 at x = 1."""


class Constant(AnnealingSchedule):
    """`end` from the first step on."""

    def shape(self, x: float) -> float:
        return 1.0


class Linear(AnnealingSchedule):
    """A straight line (for the KL weight: Bowman et al. 2016)."""

    def shape(self, x: float) -> float:
        return x


class Cosine(AnnealingSchedule):
    """Half a cosine wave: slow, fast, slow."""

    def shape(self, x: float) -> float:
        return 0.5 * (1 - math.cos(math.pi * x))


@dataclass(frozen=True)
class Sigmoid(AnnealingSchedule):
    """A logistic curve, scaled to go through both ends exactly (Bowman et al. 2016, figure 2).

    Args:
        steepness: width of the way in units of the logistic function; 10 is nearly flat at both ends.
    """

    steepness: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steepness <= 0:
            raise ValueError(f"steepness={self.steepness} must be above 0")

    def shape(self, x: float) -> float:
        def logistic(z: float) -> float:
            return 1 / (1 + math.exp(-z))

        low, high = logistic(-self.steepness / 2), logistic(self.steepness / 2)
        return (logistic(self.steepness * (x - 0.5)) - low) / (high - low)


@dataclass(frozen=True)
class Cyclical(AnnealingSchedule):
    """`num_cycles` times from start to end, each a line followed by a rest (Fu et al. 2019, eq. 6-7).

    Args:
        num_cycles: cycles within `num_steps`.
        ramp: share of a cycle that rises; the remainder stays at `end`.
    """

    num_cycles: int = 4
    ramp: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_cycles < 1 or not 0 < self.ramp <= 1:
            raise ValueError(f"num_cycles={self.num_cycles} must be at least 1 and ramp={self.ramp} in (0, 1]")

    def shape(self, x: float) -> float:
        if x >= 1:
            return 1.0
        cycles = x * self.num_cycles
        within = max(0.0, cycles - math.floor(cycles + 1e-9))  # rounding must not put a restart at its cycle's end
        return min(within / self.ramp, 1.0)


@dataclass(frozen=True)
class WarmupDecay:
    """Learning rate as a multiple of its peak: a line up, a rest at 1, half a cosine or a line down.

    The way down follows how much of training is over, counted by whichever limit comes first (steps, epochs or
    `trainer.max_time`), so that it ends at the right moment on a fast machine and on a slow one.

    Args:
        warmup_steps: steps of the way up.
        decay_share: share of training, at its end, that the way down takes; 0 for none.
        final: multiple at the end.
        shape: of the way down.
    """

    warmup_steps: int = 200
    decay_share: float = 0.5
    final: float = 0.0
    shape: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or self.final < 0 or not 0 <= self.decay_share <= 1:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and final={self.final} must be at least 0, "
                f"decay_share={self.decay_share} in [0, 1]"
            )

    def __call__(self, step: int, progress: float) -> float:
        """The multiple at training step `step`, `progress` in [0, 1] of the way through training."""
        up = min((step + 1) / (self.warmup_steps + 1), 1.0)
        into_decay = max(0.0, progress - (1 - self.decay_share)) / self.decay_share if self.decay_share else 0.0
        left = 1 - min(into_decay, 1.0)
        if self.shape == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        return up * (self.final + (1 - self.final) * left)
