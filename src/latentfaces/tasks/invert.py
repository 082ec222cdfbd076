"""The noise from which a photo comes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentfaces.data.images import to_float
from latentfaces.diffusion import Sampler
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import PhotoTask
from latentfaces.tasks.output import PictureFolder, bands
from latentfaces.tasks.photos import photos_for
from latentfaces.tasks.reconstruct import reconstructions, report


def found_noise(pipeline: FacePipeline, images: Tensor, sampler: Sampler, batch_size: int) -> Tensor:
    """Photos (n, 3, R, R) uint8 -> the noise (n, c, h, w) that the sampler leads to them, nearly.

    Raises:
        UserError: the sampler adds noise on its way and has no way back.
    """
    return torch.cat([pipeline.invert(to_float(batch), sampler) for batch in images.split(batch_size)])


@dataclass(kw_only=True)
class Invert(PhotoTask):
    """Photos, what the VAE makes of them, and what comes of their inverted noise: three rows.

    Prints PSNR and SSIM of the third row against the photos, of the second against the photos, and of the third
    against the second, which is the inversion's own error; and mean and standard deviation of the noise, near 0 and 1
    where the photos look to the model like its own faces. The noise is written as noise.npy, (n, c, h, w) float32.
    """

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the pictures and the noise; the grid's path."""
        photos = photos_for(pipeline.resolution, self.image, self.pack, self.num_images, self.seed)
        noise = found_noise(pipeline, photos, self.sampler, self.batch_size)
        again = torch.cat(list(pipeline.faces_from_noise(noise, self.sampler, self.batch_size)))
        through_vae = reconstructions(pipeline, photos, 0.0, self.batch_size)
        report("", photos, again)
        report("_of_vae", photos, through_vae)
        report("_of_inversion", through_vae, again)
        print(f"noise_mean {noise.mean():.4g}")
        print(f"noise_std {noise.std():.4g}")
        np.save(pictures.folder / "noise.npy", noise.float().cpu().numpy())
        pictures.add(again)
        return pictures.grid(*bands([photos, through_vae, again]))
