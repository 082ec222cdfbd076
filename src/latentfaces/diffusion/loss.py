"""Training loss of stage 2."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from latentfaces.bounds import NonNegativeFloat, PositiveFloat
from latentfaces.diffusion.denoiser import Denoiser
from latentfaces.diffusion.time_sampler import TimeSampler


class Weighting(ABC):
    """Loss weight as a function of time."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        """Return the weight (b,) of the squared error of the denoiser's target at t (b,)."""


class UniformWeighting(Weighting):
    """Weight 1 at every time, for any target (Ho et al. 2020, eq. 14)."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class SNRWeighting(Weighting):
    """Weighting defined for the squared error of x0, as a function of the signal-to-noise ratio."""

    @abstractmethod
    def of_x0(self, snr: Tensor) -> Tensor:
        """Return the weight of the squared error of x0."""

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        # x0 = p * x_t + q * prediction, so an error of the prediction is q times as large in x0
        _, q = denoiser.x0_coefficients(t)
        return self.of_x0(denoiser.schedule.snr(t)) * q.square()


class MinSNRWeighting(SNRWeighting):
    """Min-SNR weighting, min(SNR, gamma), which reduces the weight of low noise levels (Hang et al. 2023, eq. 8).

    Args:
        gamma: upper bound of the weight, above 0.
    """

    def __init__(self, gamma: PositiveFloat = 5.0) -> None:
        self.gamma = gamma

    def of_x0(self, snr: Tensor) -> Tensor:
        return snr.clamp(max=self.gamma)


class EDMWeighting(SNRWeighting):
    """EDM weighting, (sigma^2 + 1) / sigma^2 = SNR + 1 (Karras et al. 2022, table 1, with sigma_data = 1)."""

    def of_x0(self, snr: Tensor) -> Tensor:
        return snr + 1


class VWeighting(Weighting):
    """Weight that makes the loss the squared error of v for any target (with target="x0": Li & He 2025, table 1).

    Args:
        max_x0_weight: upper bound of the weight of the squared error of x0, 1 / t^2 on a `RectifiedFlow`. The default
            bounds it where t is below 0.05, as in the paper.
    """

    def __init__(self, max_x0_weight: PositiveFloat = 400.0) -> None:
        self.max_x0_weight = max_x0_weight

    def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
        schedule, (_, q) = denoiser.schedule, denoiser.x0_coefficients(t)
        a, b = schedule.v_coefficients(t)
        slope = a - b * schedule.alpha(t) / schedule.sigma(t)  # dv / dx0 at a given x_t
        return slope.square().clamp(max=self.max_x0_weight) * q.square()


class DenoisingLoss(nn.Module):
    """Weighted mean squared error of the prediction (Ho et al. 2020; Lipman et al. 2023, eq. 9).

    Args:
        time_sampler: distribution of the training times.
        weighting: weight of each time; uniform by default.
        auxiliary_weight: weight of the loss of the denoiser's auxiliary head, if it has one.
    """

    def __init__(
        self,
        time_sampler: TimeSampler,
        weighting: Weighting | None = None,
        auxiliary_weight: NonNegativeFloat = 0.25,
    ) -> None:
        super().__init__()
        self.time_sampler, self.weighting = time_sampler, weighting or UniformWeighting()
        self.auxiliary_weight = auxiliary_weight

    def forward(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Return the loss per head and sample, (heads, b), for x0 (b, c, h, w); t and noise are drawn if None."""
        t = self.time_sampler.sized(x0.shape)(len(x0), denoiser.schedule, x0.device) if t is None else t
        noise = torch.randn_like(x0) if noise is None else noise
        heads = denoiser.heads(denoiser.schedule.add_noise(x0, noise, t), t, condition)
        target, weight = denoiser.target_of(x0, noise, t), self.weighting(denoiser, t)
        return torch.stack([weight * (head - target).square().flatten(1).mean(1) for head in heads])

    def total(self, losses: Tensor) -> Tensor:
        """Reduce losses (heads, b) to the scalar training loss."""
        means = losses.mean(1)
        return means[0] + self.auxiliary_weight * means[1:].sum()
