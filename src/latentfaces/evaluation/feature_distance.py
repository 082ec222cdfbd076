"""Distance between samples and real images, to compare sampling settings of a run."""

from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.evaluation.features import Features
from latentfaces.evaluation.generation import kernel_distance

LEAST_STD = 1e-3
"""Features below this fraction of the median std, over features that vary, are dropped as constant."""
MAX_Z = 10.0
"""Bound of abs(z): one odd feature must not decide the distance."""


class FeatureDistance:
    """Kernel distance between real images and others, each feature scaled to std 1 over the real ones.

    Args:
        extract: extracts the features.
        real: images (n, 3, R, R) uint8 that were not trained on.

    Raises:
        UserError: the features of the real images do not vary.
    """

    def __init__(self, extract: Features, real: Tensor) -> None:
        self.extract = extract
        features = extract(real)
        std = features.std(0)
        varying = std[std > 0]
        if not len(varying):
            raise UserError(f"The features of {len(real)} held-out image(s) do not vary. Hold out more images.")
        self.kept = std >= LEAST_STD * varying.median()
        self.mean, self.std = features.mean(0)[self.kept], std[self.kept]
        self.real = self.scaled(features)

    def scaled(self, features: Tensor) -> Tensor:
        """Scale features (n, d) by mean and std of the real ones, and drop those that are constant there."""
        return ((features[:, self.kept] - self.mean) / self.std).clamp(-MAX_Z, MAX_Z)

    def __call__(self, fake: Tensor) -> float:
        """Return the distance of images (m, 3, R, R) uint8: about 0 for real images, without upper bound."""
        return kernel_distance(self.real, self.scaled(self.extract(fake)))
