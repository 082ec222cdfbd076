"""The objective of stage 1."""

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.autoencoder.posterior import DiagonalGaussian


class VAELossTerms(NamedTuple):
    """Scalars, before weighting: `total` is what is minimised."""

    total: Tensor
    reconstruction: Tensor
    kl: Tensor


class VAELoss(nn.Module):
    """Negative evidence lower bound (Kingma & Welling 2014, eq. 3) with a weight on the KL (Higgins et al. 2017).

    Both terms are per image value: the reconstruction error is a mean over pixels and colours, and the KL, a sum over
    the latent in nats, is divided by 3 H W. So a weight means the same at every resolution and latent size, and 1e-6
    is the weight of Rombach et al. 2022, whose two terms are sums.

    Args:
        reconstruction: "l1" (sharper edges) or "mse".
    """

    def __init__(self, reconstruction: Literal["l1", "mse"] = "l1") -> None:
        super().__init__()
        distances = {"l1": F.l1_loss, "mse": F.mse_loss}
        if reconstruction not in distances:
            raise ValueError(f"reconstruction={reconstruction!r} is not one of {', '.join(distances)}")
        self.distance = distances[reconstruction]

    def forward(
        self, images: Tensor, reconstructions: Tensor, posterior: DiagonalGaussian, kl_weight: float
    ) -> VAELossTerms:
        """Images and reconstructions (b, 3, H, W), the posterior, the KL weight of this step -> scalars."""
        reconstruction = self.distance(reconstructions, images)
        kl = posterior.kl().mean() / images[0].numel()
        return VAELossTerms(reconstruction + kl_weight * kl, reconstruction, kl)
