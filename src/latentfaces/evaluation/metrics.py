"""How close images are to others."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from latentfaces.data.images import to_uint8
from latentfaces.evaluation.features import Features, known_features
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
    """Of reconstructions of `images` PSNR in dB (mean over images of each one's) and SSIM; of sets also distances.

    Args:
        images: (n, 3, H, W) in [-1, 1].
        others: their reconstructions, likewise; or new faces (m, 3, H, W).
        features: adds the Frechet and kernel distance of the two sets, precision and recall: through this measure, or
            through one of `latentfaces.evaluation.features.NETWORKS` by name. With "inception" the first is the FID.
        perceptual: adds "lpips", such as `latentfaces.autoencoder.PerceptualDistance()`.
        paired: whether each of `others` belongs to one of `images`; new faces do not.

    Raises:
        ValueError: there is nothing to compute.
        UserError: the network's weights cannot be had.
    """
    if not paired and (features is None or perceptual is not None):
        raise ValueError("new faces have no pairs: give features=..., and no perceptual=...")
    values = {name: float(value) for name, value in reconstruction_metrics(images, others).items()} if paired else {}
    if perceptual is not None:
        pairs = zip(images.split(AT_ONCE), others.split(AT_ONCE), strict=True)
        values["lpips"] = sum(len(a) * float(perceptual(a, b)) for a, b in pairs) / len(images)
    if features is not None:
        look = known_features(features, device=images.device, key="weights") if isinstance(features, str) else features
        sets = (torch.cat([look(to_uint8(batch)) for batch in part.split(AT_ONCE)]) for part in (images, others))
        values |= generator_metrics(*sets)
        if look.key.startswith("inception-"):
            values["fid"] = values.pop("frechet_distance")
    return values


def reconstruction_metrics(images: Tensor, reconstructions: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM as in `calculate_metrics`, as tensors on the images' device."""
    # Within a bfloat16 training the filters of SSIM would be bfloat16 too, and the figure 0.02 too low.
    with torch.autocast(images.device.type, enabled=False):
        psnr = peak_signal_noise_ratio(reconstructions, images, RANGE, dim=(1, 2, 3), reduction="elementwise_mean")
        ssim = structural_similarity_index_measure(reconstructions, images, data_range=RANGE)
    assert isinstance(ssim, Tensor)
    return {"psnr": psnr, "ssim": ssim}
