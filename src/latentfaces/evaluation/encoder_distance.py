"""How far generated faces are from real ones, as the VAE's own encoder sees them: quick, and nothing to download."""

import torch
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.evaluation.features import EncoderFeatures
from latentfaces.evaluation.generation import kernel_distance


class EncoderDistance:
    """Kernel distance between real images and others, on the features of a VAE's encoder.

    Not a FID: it ranks samplings of one run, it does not compare runs.

    Args:
        vae: whose encoder looks.
        real: images (n, 3, R, R) uint8 that it was not trained on.
    """

    def __init__(self, vae: VAE, real: Tensor) -> None:
        self.look = EncoderFeatures(vae)
        features = self.features(real)
        self.mean, self.std = features.mean(0), features.std(0).clamp(min=1e-6)
        self.real = (features - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Of images (n, 3, R, R) uint8, (n, d)."""
        return torch.cat([self.look(batch) for batch in images.split(64)])

    def __call__(self, fake: Tensor) -> float:
        """Of images (m, 3, R, R) uint8: about 0 for real ones, no upper bound."""
        return kernel_distance(self.real, (self.features(fake) - self.mean) / self.std)
