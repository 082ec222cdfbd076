"""The objective of stage 1, but for the adversary."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.autoencoder.perceptual import PerceptualDistance
from latentfaces.autoencoder.posterior import DiagonalGaussian


class Distortion(NamedTuple):
    """How far reconstructions are from images; scalars."""

    total: Tensor
    """What is minimised."""
    terms: dict[str, Tensor]
    """Its parts before weighting, by name."""


class Rate(NamedTuple):
    """How much the latents say; scalars."""

    total: Tensor
    """What is minimised, before its weight."""
    kl: Tensor
    """All of the KL, charged or not."""


class VAELoss(nn.Module):
    """Negative evidence lower bound: distortion + KL weight x rate (Kingma & Welling 2014, eq. 3; Higgins et al. 2017).

    The reconstruction error is a mean over pixels and colours. With the KL, a sum over the latent in nats, divided by
    3 H W, both terms are per image value: a weight then means the same at every resolution and latent size, and 1e-6
    is the weight of Rombach et al. 2022, whose two terms are sums.

    Args:
        reconstruction: "l1" (sharper edges) or "mse".
        kl_reduction: what the KL of a latent is divided by: the values of the "image" (3 H W), those of the "latent"
            (c h w), or nothing ("sum").
        kl_target: nats per latent value that cost nothing: the KL is pulled down to this and no further (free bits of
            Kingma et al. 2016, eq. 15, over the whole latent).
        equivariance_weight: of the term that keeps detail out of the latents' high frequencies; 0 leaves it out.
        perceptual: a distance between pictures as networks see them, added to the reconstruction error.
        perceptual_weight: its weight.
    """

    def __init__(
        self,
        reconstruction: Literal["l1", "mse"] = "l1",
        kl_reduction: Literal["image", "latent", "sum"] = "image",
        kl_target: float = 0.0,
        equivariance_weight: float = 0.0,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 1.0,
    ) -> None:
        super().__init__()
        distances = {"l1": F.l1_loss, "mse": F.mse_loss}
        if reconstruction not in distances:
            raise ValueError(f"reconstruction={reconstruction!r} is not one of {', '.join(distances)}")
        if kl_reduction not in ("image", "latent", "sum"):
            raise ValueError(f"kl_reduction={kl_reduction!r} is not one of image, latent, sum")
        for name, value in (
            ("kl_target", kl_target),
            ("equivariance_weight", equivariance_weight),
            ("perceptual_weight", perceptual_weight),
        ):
            if value < 0:
                raise ValueError(f"{name}={value} must not be negative")
        self.distance = distances[reconstruction]
        self.kl_reduction, self.kl_target = kl_reduction, kl_target
        self.equivariance_weight = equivariance_weight
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight

    def distortion(self, images: Tensor, reconstructions: Tensor) -> Distortion:
        """Of images and reconstructions, both (b, 3, H, W) in [-1, 1]."""
        terms = {"reconstruction": self.distance(reconstructions, images)}
        total = terms["reconstruction"]
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(images, reconstructions)
            total = total + self.perceptual_weight * terms["perceptual"]
        return Distortion(total, terms)

    def rate(self, posterior: DiagonalGaussian, images: Tensor) -> Rate:
        """Of the posterior of images (b, 3, H, W)."""
        num_latents = posterior.mean[0].numel()
        divisor = {"image": images[0].numel(), "latent": num_latents, "sum": 1}[self.kl_reduction]
        nats = posterior.kl().mean()
        return Rate((nats - self.kl_target * num_latents).clamp(min=0) / divisor, nats / divisor)

    def equivariance(self, images: Tensor, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Error of decoding half-size latents to half-size images, before its weight (Skorokhodov et al. 2025, eq. 5).

        An autoencoder left alone hides detail in high frequencies of its latents, which a diffusion model learns last
        and badly; what must survive halving cannot hide there.

        Args:
            images: (b, 3, H, W).
            latents: (b, c, h, w), h and w even.
            decode: latents to images.
        """
        return self.distance(decode(F.avg_pool2d(latents, 2)), F.avg_pool2d(images, 2))
