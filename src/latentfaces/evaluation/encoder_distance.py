"""How far generated faces are from real ones, as the VAE's own encoder sees them: quick, and nothing to download."""

import torch
from torch import Tensor

from latentfaces.autoencoder import VAE


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD of features (n, d), (m, d), cubic kernel, all pairs (Binkowski et al. 2018, eq. 4)."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    real, fake = real.double(), fake.double()
    within = off_diagonal(kernel(real, real)) + off_diagonal(kernel(fake, fake))
    return float(within - 2 * kernel(real, fake).mean())


class EncoderDistance:
    """Kernel distance between real images and others, on the features of a VAE's encoder.

    Not a FID: it ranks samplings of one run, it does not compare runs.

    Args:
        vae: whose encoder looks.
        real: images (n, 3, R, R) in [-1, 1] that it was not trained on.
    """

    def __init__(self, vae: VAE, real: Tensor) -> None:
        self.vae = vae
        features = self.features(real)
        self.mean, self.std = features.mean(0), features.std(0).clamp(min=1e-6)
        self.real = (features - self.mean) / self.std

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Mean and deviation over the picture of each channel at each level, (n, d)."""
        parts = []
        for batch in images.split(64):
            posterior, maps = self.vae.encode_with_skips(batch.to(self.vae.latent_mean.device))
            levels = [level.float().flatten(2) for level in (*maps, posterior.mean)]
            parts.append(torch.cat([f(level, -1) for level in levels for f in (torch.mean, torch.std)], dim=1).cpu())
        return torch.cat(parts)

    def __call__(self, fake: Tensor) -> float:
        """Of images (m, 3, R, R) in [-1, 1]: about 0 for real ones, no upper bound."""
        return kernel_distance(self.real, (self.features(fake) - self.mean) / self.std)
