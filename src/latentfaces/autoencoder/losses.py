"""Training loss of stage 1 without the adversarial term."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.autoencoder.perceptual import PairDistance
from latentfaces.autoencoder.posterior import DiagonalGaussian
from latentfaces.bounds import NonNegativeFloat


class Distortion(NamedTuple):
    """Distortion between images and reconstructions, as scalars."""

    total: Tensor
    """Weighted sum, which is minimized."""
    terms: dict[str, Tensor]
    """Terms before weighting, by name."""


class Rate(NamedTuple):
    """Rate of the latents, as scalars."""

    total: Tensor
    """Rate above the target, which is minimized, before weighting."""
    kl: Tensor
    """KL divergence without the target."""


class VAELoss(nn.Module):
    """Negative ELBO: distortion + KL weight * rate (Kingma & Welling 2014, eq. 3; Higgins et al. 2017).

    The reconstruction error is a mean over pixels and channels. The KL is a sum over the latent in nats. Divided by
    3 H W, it is per image value too, so one weight fits every resolution and latent size. Rombach et al. 2022 sum both
    terms, and their weight is 1e-6.

    Args:
        reconstruction: "l1" (sharper edges) or "mse".
        kl_reduction: divisor of the KL: number of values of the "image" (3 H W) or "latent" (c h w), or 1 ("sum").
        kl_target: KL in nats per latent value below which there is no penalty (free bits over the full latent: Kingma
            et al. 2016, eq. 15).
        equivariance_weight: weight of the scale equivariance loss (see `equivariance`); 0 disables it.
        perceptual: perceptual distance, added to the reconstruction error.
        perceptual_weight: weight of the perceptual distance.
    """

    def __init__(
        self,
        reconstruction: Literal["l1", "mse"] = "l1",
        kl_reduction: Literal["image", "latent", "sum"] = "image",
        kl_target: NonNegativeFloat = 0.0,
        equivariance_weight: NonNegativeFloat = 0.0,
        perceptual: PairDistance | None = None,
        perceptual_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.distance = {"l1": F.l1_loss, "mse": F.mse_loss}[reconstruction]
        self.kl_reduction, self.kl_target = kl_reduction, kl_target
        self.equivariance_weight = equivariance_weight
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight

    def distortion(self, images: Tensor, reconstructions: Tensor) -> Distortion:
        """Return the distortion of images and reconstructions, both (b, 3, H, W) in [-1, 1]."""
        terms = {"reconstruction": self.distance(reconstructions, images)}
        total = terms["reconstruction"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(images, reconstructions)
            total = total + self.perceptual_weight * terms["perceptual"]
        return Distortion(total, terms)

    def rate(self, posterior: DiagonalGaussian, images: Tensor) -> Rate:
        """Return the rate of the posterior of images (b, 3, H, W)."""
        num_latents = posterior.mean[0].numel()
        divisor = {"image": images[0].numel(), "latent": num_latents, "sum": 1}[self.kl_reduction]
        nats = posterior.kl().mean()
        return Rate((nats - self.kl_target * num_latents).clamp(min=0) / divisor, nats / divisor)

    def equivariance(self, images: Tensor, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the scale equivariance loss before weighting (Skorokhodov et al. 2025, eq. 5).

        It is the error of decoding half-size latents to half-size images. Without it, autoencoders store detail in the
        high frequencies of the latents, which a diffusion model learns last and badly.

        Args:
            images: (b, 3, H, W).
            latents: (b, c, h, w), h and w even.
            decode: function from latents to images.
        """
        return self.distance(decode(F.avg_pool2d(latents, 2)), F.avg_pool2d(images, 2))
