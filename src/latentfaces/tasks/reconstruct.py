"""Photos through the VAE and back."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.data.images import to_float, to_uint8
from latentfaces.evaluation import calculate_metrics
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.output import PictureFolder, bands
from latentfaces.tasks.photos import photos_for


@dataclass
class Reconstruct:
    """Photos above what the VAE makes of them, with PSNR and SSIM.

    Where the VAE has skip connections, a third row shows what it makes of them with these, and that is what is written
    as single pictures.

    Args:
        pack: the run's pack, whose held-out photos are shown unless `image` is given.
        image: a picture, or a folder or .zip of pictures, centre-cropped to a square.
        num_images: at most so many.
        seed: of the choice among more.
        batch_size: how many at once.
    """

    pack: str | None
    image: str | None
    num_images: int
    seed: int
    batch_size: int

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write originals above reconstructions; the grid's path."""
        images = photos_for(pipeline.resolution, self.image, self.pack, self.num_images, self.seed)
        rows = [images, reconstructions(pipeline, images, 0.0, self.batch_size)]
        report("", rows[0], rows[1])
        if pipeline.vae.skip_connections:
            rows.append(reconstructions(pipeline, images, 1.0, self.batch_size))
            report("_with_skips", rows[0], rows[2])
        pictures.add(rows[-1])
        return pictures.grid(*bands(rows))


def reconstructions(pipeline: FacePipeline, images: Tensor, skips: float, batch_size: int) -> Tensor:
    """What the VAE makes of images (n, 3, R, R) uint8, likewise; for `skips` see `FacePipeline.reconstruct`."""
    batches = images.split(batch_size)
    return torch.cat([to_uint8(pipeline.reconstruct(to_float(batch), skips)).cpu() for batch in batches])


def report(suffix: str, images: Tensor, others: Tensor) -> None:
    """Print PSNR and SSIM of others (n, 3, R, R) uint8."""
    for name, value in calculate_metrics(to_float(images), to_float(others)).items():
        print(f"{name}{suffix} {value:.4g}")
