"""Metrics of reconstructions and of generated images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from latentfaces.data.images import to_uint8
from latentfaces.evaluation.features import INCEPTION, Features, known_features
from latentfaces.evaluation.generation import generator_metrics

RANGE = (-1.0, 1.0)
AT_ONCE = 64


@torch.no_grad()
def calculate_metrics(
    images: Tensor,
    others: Tensor,
    features: Features | str | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    paired: bool = True,
) -> dict[str, float]:
    """Return PSNR in dB (mean over images) and SSIM of reconstructions, and optional metrics.

    Args:
        images: (n, 3, H, W) in [-1, 1].
        others: their reconstructions, or generated images (m, 3, H, W).
        features: adds Frechet and kernel distance of the two sets, precision and recall. Either features or a name in
            `latentfaces.evaluation.features.NETWORKS`. With "inception" the Frechet distance is the FID.
        perceptual: adds "lpips", e.g. `latentfaces.autoencoder.PerceptualDistance()`.
        paired: whether `others` are reconstructions of `images`.

    Raises:
        ValueError: there is nothing to compute.
        UserError: the weights of the network are missing.
    """
    if not paired and (features is None or perceptual is not None):
        raise ValueError("Unpaired images need features=... and no perceptual=...")
    values = {name: float(value) for name, value in reconstruction_metrics(images, others).items()} if paired else {}
    if perceptual is not None:
        pairs = zip(images.split(AT_ONCE), others.split(AT_ONCE), strict=True)
        values["lpips"] = sum(len(a) * float(perceptual(a, b)) for a, b in pairs) / len(images)
    if features is not None:
        if isinstance(features, str):
            features = known_features(features, device=images.device, key="weights")
        values |= generator_metrics(features(to_uint8(images)), features(to_uint8(others)))
        if features.key.startswith(f"{INCEPTION}-"):
            values["fid"] = values.pop("frechet_distance")
    return values


def reconstruction_metrics(images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """Return PSNR and SSIM as in `calculate_metrics`, as tensors on the images' device."""
    # Under bfloat16 autocast SSIM would be 0.02 too low.
    with torch.autocast(images.device.type, enabled=False):
        psnr = peak_signal_noise_ratio(reconstructions, images, RANGE, dim=(1, 2, 3), reduction="elementwise_mean")
        # SSIM compares means, so it depends on the zero point. Published values are of images in [0, 1].
        ssim = structural_similarity_index_measure(reconstructions / 2 + 0.5, images / 2 + 0.5, data_range=(0.0, 1.0))
    assert isinstance(ssim, Tensor)
    return {"psnr": psnr, "ssim": ssim}
