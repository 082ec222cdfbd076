"""Annealing schedules as functions of the training step, and the learning rate schedule."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

from latentfaces.bounds import Fraction, Interval, Natural, NonNegativeFloat, Positive, PositiveFloat


@dataclass(frozen=True)
class AnnealingSchedule(ABC):
    """Base class of schedules from `start` at step 0 to `end` at step `num_steps` and later.

    Args:
        start: value at step 0.
        end: value at step `num_steps` and later.
        num_steps: length of the schedule in training steps.
    """

    start: float = 0.0
    end: float = 1.0
    num_steps: Positive = 1000

    def __call__(self, step: int) -> float:
        """Return the value at training step `step` >= 0."""
        position = self.shape(min(step / self.num_steps, 1.0))
        return (1 - position) * self.start + position * self.end  # exact at both ends

    @abstractmethod
    def shape(self, x: float) -> float:
        """Return the position between start (0) and end (1) for x in [0, 1]."""


class Constant(AnnealingSchedule):
    """Constant schedule: `end` at every step."""

    def shape(self, x: float) -> float:
        return 1.0


class Linear(AnnealingSchedule):
    """Linear schedule (for the KL weight: Bowman et al. 2016)."""

    def shape(self, x: float) -> float:
        return x


class Cosine(AnnealingSchedule):
    """Cosine schedule: half a period, flat at both ends."""

    def shape(self, x: float) -> float:
        return 0.5 * (1 - math.cos(math.pi * x))


@dataclass(frozen=True)
class Sigmoid(AnnealingSchedule):
    """Sigmoid schedule, scaled to reach both ends exactly (Bowman et al. 2016, figure 2).

    Args:
        steepness: range of the argument of the logistic function; 10 is nearly flat at both ends.
    """

    steepness: PositiveFloat = 10.0

    def shape(self, x: float) -> float:
        def logistic(z: float) -> float:
            return 0.5 + 0.5 * math.tanh(z / 2)  # 1 / (1 + exp(-z)), without overflow

        low, high = logistic(-self.steepness / 2), logistic(self.steepness / 2)
        return (logistic(self.steepness * (x - 0.5)) - low) / (high - low)


@dataclass(frozen=True)
class Cyclical(AnnealingSchedule):
    """Cyclical schedule of `num_cycles` linear ramps, each followed by a plateau (Fu et al. 2019, eq. 6-7).

    Args:
        num_cycles: number of cycles within `num_steps`.
        ramp: fraction of a cycle that rises; the rest stays at `end`.
    """

    num_cycles: Positive = 4
    ramp: Annotated[float, Interval(gt=0, le=1)] = 0.5

    def shape(self, x: float) -> float:
        if x >= 1:
            return 1.0
        cycles = x * self.num_cycles
        # Rounding must not turn a restart into the end of a cycle.
        within = max(0.0, cycles - math.floor(cycles + 1e-9))
        return min(within / self.ramp, 1.0)


@dataclass(frozen=True)
class WarmupDecay:
    """Learning rate factor with linear warm-up, a plateau at 1, and cosine or linear decay.

    The decay follows the progress of training towards its first limit: steps, epochs or `trainer.max_time`. It
    therefore ends with training on fast and on slow machines.

    Args:
        warmup_steps: number of warm-up steps.
        decay_share: fraction of training, at its end, with decay; 0 for none.
        final: factor at the end.
        shape: shape of the decay.
    """

    warmup_steps: Natural = 200
    decay_share: Fraction = 0.5
    final: NonNegativeFloat = 0.0
    shape: Literal["cosine", "linear"] = "cosine"

    def __call__(self, step: int, progress: float) -> float:
        """Return the factor at training step `step`, with `progress` in [0, 1] of training done."""
        up = min((step + 1) / (self.warmup_steps + 1), 1.0)
        into_decay = max(0.0, progress - (1 - self.decay_share)) / self.decay_share if self.decay_share else 0.0
        left = 1 - min(into_decay, 1.0)
        if self.shape == "cosine":
            left = 0.5 * (1 - math.cos(math.pi * left))
        return up * (self.final + (1 - self.final) * left)
