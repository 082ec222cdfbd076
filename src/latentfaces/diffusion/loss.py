"""The objective of stage 2, and the times at which it is asked."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from latentfaces.diffusion.denoiser import Denoiser


class TimeSampler(ABC):
    """Draws the times t of a training batch."""

    @abstractmethod
    def from_uniform(self, u: Tensor) -> Tensor:
        """Map u ~ U(0, 1), any shape, to t in (0, 1): the inverse of the distribution function of t."""

    def __call__(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        """Times (batch_size,), stratified: one from each of batch_size equal slices (Kingma et al. 2021, I.1)."""
        slices = torch.arange(batch_size, device=device)
        u = (slices + torch.rand(batch_size, device=device)) / batch_size
        return self.from_uniform(u.clamp(1e-5, 1 - 1e-5))


class UniformTime(TimeSampler):
    """t ~ U(0, 1)."""

    def from_uniform(self, u: Tensor) -> Tensor:
        return u


class LogitNormalTime(TimeSampler):
    """logit(t) ~ N(mean, std^2): most questions where the answer is hardest (Esser et al. 2024, eq. 19).

    Args:
        mean: above 0 asks more of noisy times.
        std: width; above 0.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if std <= 0:
            raise ValueError(f"std={std} must be above 0")
        self.mean, self.std = mean, std

    def from_uniform(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


class DenoisingLoss(nn.Module):
    """Mean squared error of the predicted velocity (Lipman et al. 2023, eq. 9; Liu et al. 2023, eq. 1).

    Args:
        time_sampler: where on [0, 1] to ask.
    """

    def __init__(self, time_sampler: TimeSampler) -> None:
        super().__init__()
        self.time_sampler = time_sampler

    def forward(self, denoiser: Denoiser, x0: Tensor, t: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Loss per sample, (b,), at clean latents x0 (b, c, h, w); t (b,) and noise are drawn unless given."""
        t = self.time_sampler(len(x0), x0.device) if t is None else t
        noise = torch.randn_like(x0) if noise is None else noise
        x_t = denoiser.schedule.add_noise(x0, noise, t)
        error = denoiser(x_t, t) - denoiser.schedule.velocity(x0, noise, t)
        return error.square().flatten(1).mean(1)
