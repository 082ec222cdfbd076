"""Distributions of the time t in training."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from latentfaces.bounds import PositiveFloat
from latentfaces.diffusion.schedule import NoiseSchedule, shift_for


class TimeSampler(ABC):
    """Distribution of the times t of a training batch."""

    @abstractmethod
    def from_uniform(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Map u ~ U(0, 1) of any shape to t in (0, 1]: the quantile function of t."""

    def __call__(
        self,
        batch_size: int,
        schedule: NoiseSchedule,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw times (batch_size,), stratified: one from each of batch_size equal slices (Kingma et al. 2021, I.1).

        Args:
            batch_size: number of times.
            schedule: noise schedule.
            device: device of the times.
            generator: generator of the draws, on the CPU; that of the device if None.
        """
        place = device if generator is None else None
        draws = torch.rand(batch_size, device=place, generator=generator)
        return self.inside((torch.arange(batch_size, device=place) + draws).to(device) / batch_size, schedule)

    def sized(self, shape: Sequence[int]) -> "TimeSampler":
        """Return the distribution for latents (..., c, h, w): this one unless it depends on their size."""
        return self

    def inside(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Map u as `from_uniform` does, but never to t = 1, where some weightings are 0 * infinity."""
        return self.from_uniform(u.clamp(1e-5, 1 - 1e-5), schedule).clamp(max=1 - 1e-5)


class UniformTime(TimeSampler):
    """Uniform time on the schedule's even scale (`NoiseSchedule.condition`), which is t itself except for `EDM`."""

    def from_uniform(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return time_at_fraction(u, schedule)


class LogitNormalTime(TimeSampler):
    """Logit-normal time: logit(t) ~ N(mean, std^2) (Esser et al. 2024, eq. 19).

    As for `UniformTime`, t is measured on the schedule's even scale.

    Args:
        mean: above 0 draws more noisy times. "auto" is log `shift_for` the latents, which `sized` sets: on a
            `RectifiedFlow` this shifts the times of mean 0 as `Sampler` does.
        std: std of logit(t), above 0.
    """

    def __init__(self, mean: float | Literal["auto"] = 0.0, std: PositiveFloat = 1.0) -> None:
        self.mean, self.std = mean, std

    def sized(self, shape: Sequence[int]) -> TimeSampler:
        return LogitNormalTime(math.log(shift_for(shape)), self.std) if self.mean == "auto" else self

    def from_uniform(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        assert self.mean != "auto", "The mean depends on the size of the latents: call sized."
        return time_at_fraction(torch.sigmoid(self.mean + self.std * normal_quantile(u)), schedule)


class LogNormalNoise(TimeSampler):
    """Log-normal noise level: log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1).

    On a `RectifiedFlow` it equals `LogitNormalTime`.

    Args:
        mean: for data of std 1. The default is P_mean = -0.4 of EDM2 (Karras et al. 2024), which is for
            data of std 0.5, plus log 2.
        std: P_std of EDM2, above 0.
    """

    def __init__(self, mean: float = 0.29, std: PositiveFloat = 1.0) -> None:
        self.mean, self.std = mean, std

    def from_uniform(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.time_at(torch.exp(self.mean + self.std * normal_quantile(u)))


def time_at_fraction(fraction: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return the time at a fraction, in [0, 1], of the schedule's even scale.

    The scale of `EDM` ends at the condition of sigma_max, .992. Beyond it, all times would be clamped to t = 1.
    """
    return schedule.time_of(fraction * schedule.condition(torch.ones_like(fraction)))


def normal_quantile(u: Tensor) -> Tensor:
    """Return the quantiles of N(0, 1); on the CPU for MPS devices, where PyTorch lacks `ndtri`."""
    return torch.special.ndtri(u.cpu()).to(u) if u.device.type == "mps" else torch.special.ndtri(u)
