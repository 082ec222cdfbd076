"""Noise that generates given photos."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import PackTask, SamplingTask
from latentfaces.tasks.output import PictureFolder, bands
from latentfaces.tasks.reconstruct import report


@dataclass(kw_only=True)
class Invert(PackTask, SamplingTask):
    """Three rows: photos, their reconstructions by the VAE, and the images generated from their inverted noise.

    Prints PSNR and SSIM of the third row and of the second against the photos, and of the third against the second,
    which is the error of the inversion alone. Also prints mean and std of the noise, near 0 and 1 for typical images.
    Writes the noise to noise.npy, (n, c, h, w) float32.
    """

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the images and the noise. Return the path of the grid."""
        pictures.source = EDITED
        photos = self.photos(pipeline, pictures, self.num_images).images
        noise = self.noise_of(pipeline, photos)
        again = torch.cat([pipeline.images(part, self.sampler) for part in noise.split(self.batch_size)])
        through_vae = self.reconstructed(pipeline, photos)
        report("", photos, again)
        report("_of_vae", photos, through_vae)
        report("_of_inversion", through_vae, again)
        print(f"noise_mean {noise.mean():.4g}")
        print(f"noise_std {noise.std():.4g}")
        np.save(pictures.folder / "noise.npy", noise.float().cpu().numpy())
        pictures.add(again)
        return pictures.grid(*bands([photos, through_vae, again]))
