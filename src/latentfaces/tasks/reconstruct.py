"""Reconstructions by the VAE."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from latentfaces.data.images import to_float
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
        rows = [images, self.reconstructed(pipeline, images)]
        report("", rows[0], rows[1])
        if pipeline.vae.skip_connections:
            rows.append(self.reconstructed(pipeline, images, skips=1.0))
            report("_with_skips", rows[0], rows[2])
        photos.save(rows[-1], list(range(len(images))), pictures)
        return pictures.grid(*bands(rows))


def report(suffix: str, images: Tensor, others: Tensor) -> None:
    """Print PSNR and SSIM between two sets of images (n, 3, R, R) uint8."""
    for name, value in calculate_metrics(to_float(images), to_float(others)).items():
        print(f"{name}{suffix} {value:.4g}")
