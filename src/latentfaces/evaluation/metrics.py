"""How close images are to others."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

RANGE = (-1.0, 1.0)


@torch.no_grad()
def calculate_metrics(images: Tensor, reconstructions: Tensor) -> dict[str, float]:
    """PSNR in dB (mean over images of each one's) and SSIM of reconstructions (n, 3, H, W) in [-1, 1]."""
    return {name: float(value) for name, value in reconstruction_metrics(images, reconstructions).items()}


def reconstruction_metrics(images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """As `calculate_metrics`, as tensors on the images' device."""
    # Within a bfloat16 training the filters of SSIM would be bfloat16 too, and the figure 0.02 too low.
    with torch.autocast(images.device.type, enabled=False):
        psnr = peak_signal_noise_ratio(reconstructions, images, RANGE, dim=(1, 2, 3), reduction="elementwise_mean")
        ssim = structural_similarity_index_measure(reconstructions, images, data_range=RANGE)
    assert isinstance(ssim, Tensor)
    return {"psnr": psnr, "ssim": ssim}
