"""One distance between new faces and real ones, to compare ways of sampling a run."""

import torch
from torch import Tensor

from latentfaces.data.latents import images_at_once
from latentfaces.evaluation.features import Features
from latentfaces.evaluation.generation import kernel_distance

LEAST_STD = 1e-3
"""Features whose std is below this fraction of the median std are dropped: they are constant on the real images."""
MAX_Z = 10.0
"""Bound of abs(z): one odd feature must not decide the distance."""


class FeatureDistance:
    """Kernel distance between real images and others, each feature scaled to std 1 over the real ones.

    Args:
        look: extracts the features.
        real: images (n, 3, R, R) uint8 that were not trained on.
    """

    def __init__(self, look: Features, real: Tensor) -> None:
        self.look = look
        features = self.features(real)
        std = features.std(0)
        self.kept = std >= LEAST_STD * std.median()
        self.mean, self.std = features.mean(0)[self.kept], std[self.kept].clamp(min=1e-6)
        self.real = self.scaled(features)

    def scaled(self, features: Tensor) -> Tensor:
        """Scale features (n, d) by mean and std of the real ones, without those that were constant."""
        return ((features[:, self.kept] - self.mean) / self.std).clamp(-MAX_Z, MAX_Z)

    def features(self, images: Tensor) -> Tensor:
        """Return features (n, d) of images (n, 3, R, R) uint8."""
        return torch.cat([self.look(batch) for batch in images.split(images_at_once(images.shape[-1]))])

    def __call__(self, fake: Tensor) -> float:
        """Return the distance of images (m, 3, R, R) uint8: about 0 for real images, without upper bound."""
        return kernel_distance(self.real, self.scaled(self.features(fake)))
