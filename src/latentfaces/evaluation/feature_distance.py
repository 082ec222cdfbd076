"""How far new faces are from real ones, in one number: to compare ways of sampling one run."""

import torch
from torch import Tensor

from latentfaces.data.latents import images_at_once
from latentfaces.evaluation.features import Features
from latentfaces.evaluation.generation import kernel_distance


class FeatureDistance:
    """Kernel distance between real images and others, each feature scaled to deviation 1 over the real ones.

    Args:
        look: gives the features.
        real: images (n, 3, R, R) uint8 that nothing was trained on.
    """

    def __init__(self, look: Features, real: Tensor) -> None:
        self.look = look
        features = self.features(real)
        self.mean, self.std = features.mean(0), features.std(0).clamp(min=1e-6)
        self.real = (features - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Of images (n, 3, R, R) uint8, (n, d)."""
        return torch.cat([self.look(batch) for batch in images.split(images_at_once(images.shape[-1]))])

    def __call__(self, fake: Tensor) -> float:
        """Of images (m, 3, R, R) uint8: about 0 for real ones, no upper bound."""
        return kernel_distance(self.real, (self.features(fake) - self.mean) / self.std)
