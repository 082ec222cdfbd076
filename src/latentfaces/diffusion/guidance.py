"""Sharper faces without labels: away from what a weaker denoiser says."""

from abc import ABC, abstractmethod
from typing import Protocol

from torch import Tensor

from latentfaces.diffusion.denoiser import Denoiser, Predictor
from latentfaces.diffusion.schedule import NoiseSchedule


class Guidance(Protocol):
    """A choice of guidance, before it meets a denoiser."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        """The guided denoiser; `guide` is an early checkpoint of the same run, where the run has one.

        Raises:
            ValueError: the run lacks what this guidance needs.
        """


class NoGuidance:
    """The denoiser alone."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        return denoiser


class Extrapolation(ABC):
    """Weaker + weight * (stronger - weaker), within an interval of times.

    Args:
        weight: 1 is no guidance; above 1 goes beyond the stronger prediction.
        start: the noisiest time that is guided.
        end: the cleanest time that is guided; the stronger denoiser alone speaks outside (Kynkäänniemi et al. 2024).
    """

    def __init__(self, weight: float, start: float = 1.0, end: float = 0.0) -> None:
        if weight < 1:
            raise ValueError(f"weight={weight} must be at least 1, which is no guidance")
        if not 0 <= end < start <= 1:
            raise ValueError(f"start={start}, end={end} must be times with 0 <= end < start <= 1")
        self.weight, self.start, self.end = weight, start, end

    @abstractmethod
    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        """See `Guidance`."""

    def guides(self, t: float) -> bool:
        """Whether there is anything to be done at t."""
        return self.weight != 1 and self.end <= t <= self.start


class AutoGuidance(Extrapolation):
    """Guided by an earlier, worse version of the same denoiser (autoguidance: Karras et al. 2024b, eq. 3)."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        if guide is None:
            raise ValueError(
                "guidance=auto needs checkpoints/guide_denoiser.pth, which a training keeps with callbacks.guide: "
                "train again, or take guidance=none"
            )
        return AutoGuided(denoiser, guide, self)


class InternalGuidance(Extrapolation):
    """Guided by the denoiser's own auxiliary head, without further evaluations (arXiv 2512.24176)."""

    def __call__(self, denoiser: Denoiser, guide: Denoiser | None) -> Predictor:
        if not denoiser.has_auxiliary:
            raise ValueError(
                "guidance=internal needs a denoiser with an auxiliary head: train a DiT with "
                "model.denoiser.network.auxiliary_depth=4, or take guidance=none"
            )
        return InternallyGuided(denoiser, self)


class Guided(ABC):
    """A denoiser under guidance."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

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

    @abstractmethod
    def predict(self, x_t: Tensor, t: float) -> Tensor:
        """The guided prediction."""


class AutoGuided(Guided):
    """Two denoisers of the same target."""

    def __init__(self, denoiser: Denoiser, guide: Denoiser, how: Extrapolation) -> None:
        super().__init__(denoiser)
        self.guide, self.how = guide, how

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        stronger = self.denoiser.predict(x_t, t)
        if not self.how.guides(t):
            return stronger
        return self.guide.predict(x_t, t).lerp(stronger, self.how.weight)


class InternallyGuided(Guided):
    """One denoiser with two heads."""

    def __init__(self, denoiser: Denoiser, how: Extrapolation) -> None:
        super().__init__(denoiser)
        self.how = how

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        if not self.how.guides(t):
            return self.denoiser.predict(x_t, t)
        stronger, weaker = self.denoiser.heads(x_t, x_t.new_full((len(x_t),), t))
        return weaker.lerp(stronger, self.how.weight)
