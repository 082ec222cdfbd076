"""Reconstructions by the VAE."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.data.images import to_float, to_uint8
from latentfaces.evaluation import calculate_metrics
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import PackTask
from latentfaces.tasks.output import PictureFolder, bands


@dataclass(kw_only=True)
class Reconstruct(PackTask):
    """At most `num_images` photos above their reconstructions, with PSNR and SSIM.

    With skip connections in the VAE, a third row and the single images show reconstructions that use them.
    """

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write photos above reconstructions. Return the path of the grid."""
        pictures.source = EDITED
        photos = self.photos(pipeline, pictures, self.num_images)
        images = photos.images
        rows = [images, reconstructions(pipeline, images, 0.0, self.batch_size)]
        report("", rows[0], rows[1])
        if pipeline.vae.skip_connections:
            rows.append(reconstructions(pipeline, images, 1.0, self.batch_size))
            report("_with_skips", rows[0], rows[2])
        photos.save(rows[-1], list(range(len(images))), pictures)
        return pictures.grid(*bands(rows))


def reconstructions(pipeline: FacePipeline, images: Tensor, skips: float, batch_size: int) -> Tensor:
    """Reconstruct images (n, 3, R, R) uint8; for `skips` see `FacePipeline.reconstruct`."""
    batches = images.split(batch_size)
    return torch.cat([to_uint8(pipeline.reconstruct(to_float(batch), skips)).cpu() for batch in batches])


def report(suffix: str, images: Tensor, others: Tensor) -> None:
    """Print PSNR and SSIM between two sets of images (n, 3, R, R) uint8."""
    for name, value in calculate_metrics(to_float(images), to_float(others)).items():
        print(f"{name}{suffix} {value:.4g}")
