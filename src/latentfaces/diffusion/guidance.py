"""Guidance without labels: extrapolation away from a weaker denoiser."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from latentfaces.diffusion.denoiser import Denoiser, Predictor
from latentfaces.diffusion.schedule import NoiseSchedule
from latentfaces.errors import UserError


class Guidance(Protocol):
    """Guidance method, which wraps a denoiser."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        """Return the guided denoiser; `guide` is an early checkpoint of the same run, if there is one.

        Raises:
            ValueError: the guide or the auxiliary head is missing.
        """


class NoGuidance:
    """No guidance: returns the denoiser itself."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        return denoiser


class Extrapolation(ABC):
    """Guidance by extrapolation: weaker + weight * (stronger - weaker), within an interval of times.

    The interval is on the schedule's even scale (`NoiseSchedule.condition`), so it means the same for every schedule.
    Outside it, the stronger denoiser alone predicts (Kynkäänniemi et al. 2024).

    Args:
        weight: 1 disables guidance; above 1 extrapolates beyond the stronger prediction.
        start: noisiest time that is guided, in [0, 1].
        end: cleanest time that is guided, in [0, 1].
    """

    def __init__(self, weight: float, start: float = 1.0, end: float = 0.0) -> None:
        if weight < 1:
            raise ValueError(f"weight={weight} must be at least 1 (1 disables guidance)")
        if not 0 <= end < start <= 1:
            raise ValueError(f"start={start}, end={end} must satisfy 0 <= end < start <= 1")
        self.weight, self.start, self.end = weight, start, end

    @abstractmethod
    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        """See `Guidance`."""

    def applies(self, t: float, schedule: NoiseSchedule) -> bool:
        """Return whether guidance changes the prediction at t."""
        position = float(schedule.condition(torch.tensor(t, dtype=torch.float64)))
        return self.weight != 1 and self.end <= position <= self.start


class AutoGuidance(Extrapolation):
    """Guidance by an early checkpoint of the same denoiser (autoguidance: Karras et al. 2024b, eq. 3)."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        if guide is None:
            raise ValueError(
                "guidance=auto needs checkpoints/guide_denoiser.pth, which callbacks.guide saves during training. "
                "Train again, or use guidance=none."
            )
        return AutoGuided(denoiser, guide, self)


class InternalGuidance(Extrapolation):
    """Guidance by the auxiliary head of the denoiser, without additional evaluations (arXiv 2512.24176)."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        if not denoiser.has_auxiliary:
            raise ValueError(
                "guidance=internal needs a denoiser with an auxiliary head. Train a DiT with "
                "model.denoiser.network.auxiliary_depth=4, or use guidance=none."
            )
        return InternallyGuided(denoiser, self)


class Guided(ABC):
    """Denoiser under guidance.

    Args:
        denoiser: stronger denoiser, whose schedule and target the guided one has.
        guidance: weight and interval.
    """

    def __init__(self, denoiser: Denoiser, guidance: Extrapolation) -> None:
        self.denoiser, self.guidance = denoiser, guidance

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    @property
    def first_time(self) -> float:
        return self.denoiser.first_time

    def x0_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.denoiser.x0_coefficients(t)

    def noise_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.denoiser.noise_coefficients(t)

    def check_times(self, times: Sequence[float]) -> None:
        guidance = self.guidance
        if guidance.weight != 1 and not any(guidance.applies(t, self.schedule) for t in times):
            raise UserError(
                f"guidance.start={guidance.start:g}, guidance.end={guidance.end:g} contain none of the {len(times)} "
                "sampling times. Widen the interval or raise sampler.num_steps."
            )

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        if not self.guidance.applies(t, self.schedule):
            return self.denoiser.predict(x_t, t)
        stronger, weaker = self.predict_both(x_t, t)
        return weaker.lerp(stronger, self.guidance.weight)

    @abstractmethod
    def predict_both(self, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """Return the stronger and the weaker prediction."""


class AutoGuided(Guided):
    """Denoiser guided by a weaker denoiser of the same target."""

    def __init__(self, denoiser: Denoiser, guide: Denoiser, guidance: Extrapolation) -> None:
        super().__init__(denoiser, guidance)
        self.guide = guide

    def predict_both(self, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        return self.denoiser.predict(x_t, t), self.guide.predict(x_t, t)


class InternallyGuided(Guided):
    """Denoiser guided by its auxiliary head."""

    def predict_both(self, x_t: Tensor, t: float) -> tuple[Tensor, Tensor]:
        stronger, weaker = self.denoiser.heads(x_t, x_t.new_full((len(x_t),), t))
        return stronger, weaker
