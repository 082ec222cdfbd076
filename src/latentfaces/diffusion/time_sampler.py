"""The times at which training asks."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from latentfaces.diffusion.schedule import NoiseSchedule


class TimeSampler(ABC):
    """Draws the times t of a training batch."""

    @abstractmethod
    def from_uniform(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Map u ~ U(0, 1), any shape, to t in (0, 1]: the inverse of the distribution function of t."""

    def __call__(self, batch_size: int, schedule: NoiseSchedule, device: torch.device | None = None) -> Tensor:
        """Times (batch_size,), stratified: one from each of batch_size equal slices (Kingma et al. 2021, I.1)."""
        slices = torch.arange(batch_size, device=device)
        return self.inside((slices + torch.rand(batch_size, device=device)) / batch_size, schedule)

    def inside(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        """As `from_uniform`, but never t = 1, where some weightings are 0 times infinity."""
        return self.from_uniform(u.clamp(1e-5, 1 - 1e-5), schedule).clamp(max=1 - 1e-5)


class UniformTime(TimeSampler):
    """t ~ U(0, 1), on the schedule's even scale (`NoiseSchedule.condition`), which for all but `EDM` is t itself."""

    def from_uniform(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.time_of(u)


class LogitNormalTime(TimeSampler):
    """logit(t) ~ N(mean, std^2): most questions where the answer is hardest (Esser et al. 2024, eq. 19).

    As for `UniformTime`, t is the place on the schedule's even scale.

    Args:
        mean: above 0 asks more of noisy times.
        std: width; above 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        check_width(std)
        self.mean, self.std = mean, std

    def from_uniform(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.time_of(torch.sigmoid(self.mean + self.std * normal_quantile(u)))


class LogNormalNoise(TimeSampler):
    """log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1). On a `RectifiedFlow` it is `LogitNormalTime`.

    Args:
        mean: for data of standard deviation 1; the paper's P_mean = -1.2 is for 0.5, which is -0.5 here.
        std: the paper's P_std; above 0.
    """

    def __init__(self, mean: float = -0.5, std: float = 1.2) -> None:
        check_width(std)
        self.mean, self.std = mean, std

    def from_uniform(self, u: Tensor, schedule: NoiseSchedule) -> Tensor:
        return schedule.time_at(torch.exp(self.mean + self.std * normal_quantile(u)))


def normal_quantile(u: Tensor) -> Tensor:
    """The inverse of the normal distribution function, which PyTorch has not for Apple's GPUs."""
    return torch.special.ndtri(u.cpu()).to(u) if u.device.type == "mps" else torch.special.ndtri(u)


def check_width(std: float) -> None:
    """Refuse a distribution without width."""
    if std <= 0:
        raise ValueError(f"std={std} must be above 0")
