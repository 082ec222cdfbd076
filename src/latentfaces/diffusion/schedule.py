"""Noise schedules. t = 0 is data, t = 1 is noise.

    x_t = alpha(t) x0 + sigma(t) eps,    eps ~ N(0, 1)

Times t are tensors (b,). Latents are (b, c, h, w) with mean 0 and std 1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from latentfaces.bounds import Gt

Spacing = Literal["uniform", "karras", "log_snr"]


def per_sample(t: Tensor) -> Tensor:
    """Reshape (b,) to (b, 1, 1, 1) for multiplication with latents."""
    return t[:, None, None, None]


def at(function: Callable[[Tensor], Tensor], t: float) -> float:
    """Return a function of a `NoiseSchedule` at one value, in float64."""
    return float(function(torch.tensor(t, dtype=torch.float64)))


def shift_for(shape: Sequence[int]) -> float:
    """Return the factor of sigma / alpha for latents (..., c, h, w): max(1, sqrt(c h w / 4096)).

    The more values latents have, the more noise it takes to hide the image (Esser et al. 2024, eq. 23, with values
    instead of pixels as in arXiv 2510.11690).
    """
    return max(1.0, math.sqrt(math.prod(shape[-3:]) / 4096))


class NoiseSchedule(ABC):
    """Base class of noise schedules, defined by alpha, sigma and their derivatives."""

    spacing: Spacing = "uniform"
    """Spacing of sampling times for `spacing="auto"`."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Return the factor of the data at t; 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Return the factor of the noise at t; 0 at t = 0."""

    @abstractmethod
    def alpha_derivative(self, t: Tensor) -> Tensor:
        """Return d alpha / d t."""

    @abstractmethod
    def sigma_derivative(self, t: Tensor) -> Tensor:
        """Return d sigma / d t."""

    @abstractmethod
    def time_at(self, ratio: Tensor) -> Tensor:
        """Return t where sigma / alpha equals `ratio`, in [0, infinity]; 1 where the schedule ends before it."""

    def ratio(self, t: Tensor) -> Tensor:
        """Return sigma / alpha, the noise level that Karras et al. 2022 call sigma."""
        return self.sigma(t) / self.alpha(t)

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio (alpha / sigma)^2 (Kingma et al. 2021, eq. 3)."""
        return (self.alpha(t) / self.sigma(t)).square()

    def std(self, t: Tensor) -> Tensor:
        """Return the standard deviation of x_t."""
        return (self.alpha(t).square() + self.sigma(t).square()).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t for x0 and noise (b, c, h, w) at t (b,)."""
        return per_sample(self.alpha(t)) * x0 + per_sample(self.sigma(t)) * noise

    def v_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) with v = a * x0 + b * noise = (alpha eps - sigma x0) / std (Salimans & Ho 2022, section 4).

        With std 1, this is the v of the paper. For `EDM`, it is the negative output of the preconditioned network
        (Karras et al. 2022, table 1, with sigma_data = 1).
        """
        return -self.sigma(t) / self.std(t), self.alpha(t) / self.std(t)

    def input_scale(self, t: Tensor) -> Tensor:
        """Return the factor of x_t at the input of the network."""
        return torch.ones_like(t)

    def condition(self, t: Tensor) -> Tensor:
        """Return the time input of the network: an even scale from 0 (data) to 1 (noise)."""
        return t

    def time_of(self, condition: Tensor) -> Tensor:
        """Return t for a position on the even scale, the inverse of `condition`."""
        return condition


class RectifiedFlow(NoiseSchedule):
    """Rectified flow: x_t = (1 - t) x0 + t eps, v = dx / dt = eps - x0 (Liu et al. 2023, eq. 1)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return 1 / (1 + 1 / ratio)

    def v_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha_derivative(t), self.sigma_derivative(t)


class VPCosine(NoiseSchedule):
    """Cosine schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans & Ho 2022, section 4)."""

    def alpha(self, t: Tensor) -> Tensor:
        # cos(pi / 2) rounds to 4e-8, not to 0
        return torch.where(t == 1, torch.zeros_like(t), torch.cos(math.pi / 2 * t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.sigma(t)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.alpha(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(ratio)


class VPLinear(NoiseSchedule):
    """Linear betas of DDPM in continuous time: alpha^2 = exp(-integral of beta) (Song et al. 2021, eq. 33).

    Args:
        beta_min: beta at t = 0.
        beta_max: beta at t = 1.
        zero_terminal_snr: shift and scale alpha to 0 at t = 1, so that sampling starts with an input seen in training
            (Lin et al. 2023, algorithm 1).
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, zero_terminal_snr: bool = False) -> None:
        if not 0 < beta_min < beta_max:
            raise ValueError(f"beta_min={beta_min} must be above 0 and below beta_max={beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max
        self.floor = math.exp(-(beta_min + beta_max) / 4) if zero_terminal_snr else 0.0

    def integral(self, t: Tensor) -> Tensor:
        """Return the integral of beta from 0 to t."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.missing(t)

    def missing(self, t: Tensor) -> Tensor:
        """Return 1 - alpha, accurate where alpha rounds to 1."""
        return (-torch.expm1(-0.5 * self.integral(t)) / (1 - self.floor)).clamp(max=1.0)  # 1 may round to above 1

    def sigma(self, t: Tensor) -> Tensor:
        missing = self.missing(t)
        return (missing * (2 - missing)).sqrt()

    def alpha_derivative(self, t: Tensor) -> Tensor:
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        return -0.5 * beta * torch.exp(-0.5 * self.integral(t)) / (1 - self.floor)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_derivative(t) / self.sigma(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        # With alpha = (1 + ratio^2)^(-1/2), the integral is -2 log(floor + (1 - floor) alpha).
        alpha = (1 + ratio.square()).rsqrt()
        missing = ratio.square() * alpha.square() / (1 + alpha)  # 1 - alpha, accurate where alpha rounds to 1
        integral = -2 * torch.log1p(-(1 - self.floor) * missing)
        rise = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * rise * integral).sqrt()
        return (2 * integral / (self.beta_min + root)).nan_to_num(nan=1.0).clamp(max=1.0)


class EDM(NoiseSchedule):
    """EDM schedule: x_t = x0 + sigma eps with sigma = sigma_max t (Karras et al. 2022).

    The network input is x_t scaled to std 1. The time input is 2 / pi * atan(sigma), an even scale from data to noise.

    Args:
        sigma_max: noise level at t = 1; much larger than the std of the data, 1.
    """

    spacing: Spacing = "karras"

    def __init__(self, sigma_max: Annotated[float, Gt(1)] = 80.0) -> None:
        self.sigma_max = sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max)

    def time_at(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_max).clamp(max=1.0)

    def input_scale(self, t: Tensor) -> Tensor:
        return 1 / self.std(t)

    def condition(self, t: Tensor) -> Tensor:
        return 2 / math.pi * torch.atan(self.sigma(t))

    def time_of(self, condition: Tensor) -> Tensor:
        return self.time_at(torch.tan(math.pi / 2 * condition))
