"""Guidance: extrapolation away from a weaker denoiser, or from the denoiser without labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from latentfaces.bounds import Ge
from latentfaces.diffusion.denoiser import Denoiser, Predictor
from latentfaces.diffusion.schedule import NoiseSchedule, at
from latentfaces.errors import UserError

Weight = Annotated[float, Ge(1)]
"""Guidance weight; 1 disables guidance."""


class Guidance(ABC):
    """Guidance method, which wraps a denoiser."""

    uses_guide = False
    """Whether the guide is evaluated."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        """Return the guided denoiser; `guide` is an early checkpoint of the same run, if there is one.

        Raises:
            UserError: the guide, the auxiliary head or the labels are missing.
        """


class NoGuidance(Guidance):
    """No guidance: returns the denoiser itself."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        return denoiser


class Extrapolation(Guidance):
    """Guidance by extrapolation: weaker + weight * (stronger - weaker), within an interval of times.

    The interval is on the schedule's even scale (`NoiseSchedule.condition`), so it means the same for every schedule.
    Outside it, the stronger denoiser alone predicts (Kynkäänniemi et al. 2024).

    Args:
        weight: 1 disables guidance; above 1 extrapolates beyond the stronger prediction.
        start: noisiest time that is guided, in [0, 1].
        end: cleanest time that is guided, in [0, 1].
    """

    def __init__(self, weight: Weight, start: float = 1.0, end: float = 0.0) -> None:
        if weight < 1:
            raise ValueError(f"weight={weight} must be at least 1 (1 disables guidance)")
        if not 0 <= end < start <= 1:
            raise ValueError(f"start={start}, end={end} must satisfy 0 <= end < start <= 1")
        self.weight, self.start, self.end = weight, start, end

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        self.check(denoiser, guide)
        return Guided(denoiser, guide, self)

    @abstractmethod
    def check(self, denoiser: Denoiser, guide: Denoiser | None) -> None:
        """Raise a UserError if the guide, the auxiliary head or the labels are missing."""

    @abstractmethod
    def predict(self, denoiser: Denoiser, guide: Denoiser | None, x_t: Tensor, t: float) -> Tensor:
        """Return the guided prediction for x_t (b, c, h, w), all at the time t."""

    @property
    def is_enabled(self) -> bool:
        """Whether guidance changes a prediction within the interval."""
        return self.weight != 1

    def applies(self, t: float, schedule: NoiseSchedule) -> bool:
        """Return whether guidance changes the prediction at t."""
        return self.is_enabled and self.end <= at(schedule.condition, t) <= self.start


class AutoGuidance(Extrapolation):
    """Guidance by an early checkpoint of the same denoiser (autoguidance: Karras et al. 2024b, eq. 3)."""

    uses_guide = True

    def check(self, denoiser: Denoiser, guide: Denoiser | None) -> None:
        check_guide(guide, "guidance=auto")

    def predict(self, denoiser: Denoiser, guide: Denoiser | None, x_t: Tensor, t: float) -> Tensor:
        assert guide is not None
        stronger, weaker = denoiser.predict(x_t, t), guide.predict(x_t, t)
        return weaker.lerp(stronger, self.weight)


class InternalGuidance(Extrapolation):
    """Guidance by the auxiliary head of the denoiser, without additional evaluations (arXiv 2512.24176)."""

    def check(self, denoiser: Denoiser, guide: Denoiser | None) -> None:
        if not denoiser.has_auxiliary:
            raise UserError(
                "guidance=internal needs a denoiser with an auxiliary head. Train a DiT with "
                "model.denoiser.network.auxiliary_depth=4, or use guidance=none."
            )

    def predict(self, denoiser: Denoiser, guide: Denoiser | None, x_t: Tensor, t: float) -> Tensor:
        stronger, weaker = denoiser.heads(x_t, x_t.new_full((len(x_t),), t), denoiser.condition_of(x_t))
        return weaker.lerp(stronger, self.weight)


class LabelGuidance(Extrapolation):
    """Guidance by labels (classifier-free guidance: Ho & Salimans 2022), with or without that by a guide.

    For the denoiser D, the denoiser without labels U, and the guide G, which sees the labels, the prediction is
    D + (weight - 1) (D - U) + (auto_weight - 1) (D - G). In eq. 6 of the paper, `weight` is w + 1.

    Args:
        weight, start, end: see `Extrapolation`.
        auto_weight: weight of the guide as in `AutoGuidance`; at 1 it is not evaluated.
    """

    def __init__(self, weight: Weight, start: float = 1.0, end: float = 0.0, auto_weight: Weight = 1.0) -> None:
        super().__init__(weight, start, end)
        if auto_weight < 1:
            raise ValueError(f"auto_weight={auto_weight} must be at least 1 (1 disables the guide)")
        self.auto_weight = auto_weight
        self.uses_guide = auto_weight != 1

    @property
    def is_enabled(self) -> bool:
        return self.weight != 1 or self.uses_guide

    def check(self, denoiser: Denoiser, guide: Denoiser | None) -> None:
        if denoiser.condition is None:
            raise UserError(
                "guidance=labels needs a run that was trained with data.labels. Train one, or use guidance=none."
            )
        if self.uses_guide:
            check_guide(guide, "guidance.auto_weight")

    def predict(self, denoiser: Denoiser, guide: Denoiser | None, x_t: Tensor, t: float) -> Tensor:
        condition = denoiser.condition_of(x_t)
        assert condition is not None
        both = torch.cat([condition, torch.zeros_like(condition)])  # one call of the network; 0 is unknown
        given, unknown = denoiser(torch.cat([x_t, x_t]), x_t.new_full((len(both),), t), both).chunk(2)
        guided = unknown.lerp(given, self.weight)
        if self.uses_guide:
            assert guide is not None
            guided = guided + (self.auto_weight - 1) * (given - guide.predict(x_t, t))
        return guided


def check_guide(guide: Denoiser | None, key: str) -> None:
    """Raise a UserError, which names `key`, if the run has no guide."""
    if guide is None:
        raise UserError(
            f"{key} needs checkpoints/guide_denoiser.pth, which callbacks.guide saves during training. Train again, or "
            "use guidance=none."
        )


class Guided:
    """Denoiser under guidance.

    Args:
        denoiser: stronger denoiser, whose schedule and target the guided one has.
        guide: weaker denoiser of the same target, or None.
        guidance: method, weight and interval.
    """

    def __init__(self, denoiser: Denoiser, guide: Denoiser | None, guidance: Extrapolation) -> None:
        self.denoiser, self.guide, self.guidance = denoiser, guide, guidance
        self.schedule, self.first_time = denoiser.schedule, denoiser.first_time
        self.x0_coefficients, self.noise_coefficients = denoiser.x0_coefficients, denoiser.noise_coefficients

    def check_times(self, times: Sequence[float]) -> None:
        guidance = self.guidance
        if guidance.is_enabled and not any(guidance.applies(t, self.schedule) for t in times):
            raise UserError(
                f"guidance.start={guidance.start:g}, guidance.end={guidance.end:g} contain none of the {len(times)} "
                "sampling times. Widen the interval or raise sampler.num_steps."
            )

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        if not self.guidance.applies(t, self.schedule):
            return self.denoiser.predict(x_t, t)
        return self.guidance.predict(self.denoiser, self.guide, x_t, t)
