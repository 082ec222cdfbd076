"""Reconstructions by the VAE."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.data.images import to_float, to_uint8
from latentfaces.evaluation import calculate_metrics
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.output import PictureFolder, bands
from latentfaces.tasks.paste import Alignment
from latentfaces.tasks.photos import photos_for


@dataclass
class Reconstruct:
    """Photos above their reconstructions, with PSNR and SSIM.

    With skip connections in the VAE, a third row and the single images show reconstructions that use them.

    Args:
        pack: the run's pack, whose held-out images are used unless `image` is given.
        image: an image, or a folder or .zip of images.
        num_images: maximum number of photos.
        seed: selects photos where there are more.
        batch_size: photos at once.
        align, face: see `PhotoTask`.
    """

    pack: str | None
    image: str | None
    num_images: int
    seed: int
    batch_size: int
    align: str = "false"
    face: int = 1

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write photos above reconstructions. Return the path of the grid."""
        pictures.source = EDITED
        alignment = Alignment(self.align, self.face, pictures.folder)
        photos = photos_for(pipeline.resolution, self.image, self.pack, self.num_images, self.seed, alignment)
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
