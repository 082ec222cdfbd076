"""How data becomes noise. Said once, here: t = 0 is data, t = 1 is noise.

    x_t = alpha(t) x0 + sigma(t) eps,    eps ~ N(0, 1)
    v_t = dx_t / dt = alpha'(t) x0 + sigma'(t) eps

Every part takes t as a tensor (b,) and latents as (b, c, h, w).
"""

from abc import ABC, abstractmethod

from torch import Tensor


def per_sample(t: Tensor) -> Tensor:
    """(b,) -> (b, 1, 1, 1), to multiply latents with."""
    return t[:, None, None, None]


class NoiseSchedule(ABC):
    """alpha, sigma and their derivatives as functions of t; the rest follows."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Share of the data at t: 1 at t = 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise at t: 0 at t = 0."""

    @abstractmethod
    def alpha_derivative(self, t: Tensor) -> Tensor:
        """d alpha / d t."""

    @abstractmethod
    def sigma_derivative(self, t: Tensor) -> Tensor:
        """d sigma / d t."""

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio (alpha / sigma)^2 (Kingma et al. 2021, eq. 3)."""
        return (self.alpha(t) / self.sigma(t)).square()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of x0 and noise (b, c, h, w) at t (b,)."""
        return per_sample(self.alpha(t)) * x0 + per_sample(self.sigma(t)) * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v_t of x0 and noise."""
        return per_sample(self.alpha_derivative(t)) * x0 + per_sample(self.sigma_derivative(t)) * noise

    def x0_from_velocity(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Solve the two equations above for x0."""
        determinant = self.alpha(t) * self.sigma_derivative(t) - self.alpha_derivative(t) * self.sigma(t)
        return (per_sample(self.sigma_derivative(t)) * x_t - per_sample(self.sigma(t)) * v) / per_sample(determinant)

    def noise_from_velocity(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Solve the two equations above for eps."""
        determinant = self.alpha(t) * self.sigma_derivative(t) - self.alpha_derivative(t) * self.sigma(t)
        return (per_sample(self.alpha(t)) * v - per_sample(self.alpha_derivative(t)) * x_t) / per_sample(determinant)


class RectifiedFlow(NoiseSchedule):
    """Straight lines from data to noise: x_t = (1 - t) x0 + t eps, v = eps - x0 (Liu et al. 2023, eq. 1)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_derivative(self, t: Tensor) -> Tensor:
        return -t.new_ones(t.shape)

    def sigma_derivative(self, t: Tensor) -> Tensor:
        return t.new_ones(t.shape)
