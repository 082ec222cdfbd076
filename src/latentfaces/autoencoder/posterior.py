"""Posterior of the encoder: a diagonal Gaussian over latents."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DiagonalGaussian:
    """Diagonal Gaussian q(latents | image) = N(mean, diag(exp(logvar))), both (b, c, h, w).

    See Kingma & Welling 2014, appendix C.2.
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> "DiagonalGaussian":
        """Split the encoder's output (b, 2 c, h, w) into mean and log-variance, clamped to [-30, 20]."""
        mean, logvar = moments.float().chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        """Std of each value, (b, c, h, w)."""
        return torch.exp(0.5 * self.logvar)

    def sample(self) -> Tensor:
        """Draw latents by reparameterization, mean + std * noise (Kingma & Welling 2014, eq. 4)."""
        noise = torch.randn(self.mean.shape, device=self.mean.device, dtype=self.mean.dtype)  # in any memory format
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """Return the mode, which is the mean."""
        return self.mean

    def kl_of_values(self) -> Tensor:
        """Return KL(q || N(0, 1)) of each latent value, (b, c, h, w), in nats (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)

    def kl(self) -> Tensor:
        """Return KL(q || N(0, 1)) per sample, (b,), in nats, summed over the latent."""
        return self.kl_of_values().flatten(1).sum(1)
