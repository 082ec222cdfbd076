"""Faces that are nearly a photo's."""

from dataclasses import dataclass
from pathlib import Path

import torch

from latentfaces.diffusion import Sampler
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.interpolate import slerp
from latentfaces.tasks.invert import found_noise
from latentfaces.tasks.output import PictureFolder, beside
from latentfaces.tasks.photos import photos_for
from latentfaces.tasks.variants import check_share, variants


@dataclass
class Variations:
    """A line for each photo: the photo, then `num_images` faces whose noise lies between its own and fresh noise.

    Args:
        sampler: from photos to noise and back; one that adds no noise.
        pack: the run's pack, whose held-out photos are taken unless `image` is given.
        image: a picture, or a folder or .zip of pictures.
        num_images: variations of each photo.
        num_photos: at most so many photos.
        seed: names the fresh noise: variation i of a photo is always the same.
        amount: share, between 0 and 1, of the way to the fresh noise.
        batch_size: how many at once.
    """

    sampler: Sampler
    pack: str | None
    image: str | None
    num_images: int
    num_photos: int
    seed: int
    amount: float
    batch_size: int

    def __post_init__(self) -> None:
        check_share("task.amount", self.amount, low_included=False, high_included=False)

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the variations; the grid's path."""
        photos = photos_for(pipeline.resolution, self.image, self.pack, self.num_photos, self.seed)
        own = found_noise(pipeline, photos, self.sampler, self.batch_size)
        shown = []
        for which, names in variants(len(photos), self.num_images, self.seed, self.batch_size):
            fresh = pipeline.noise(names)
            noise = torch.stack([slerp(own[p], other, self.amount) for p, other in zip(which, fresh, strict=True)])
            faces = torch.cat(list(pipeline.faces_from_noise(noise, self.sampler, self.batch_size)))
            pictures.add(faces)
            shown.append(faces)
        return pictures.grid(*beside(photos, torch.cat(shown)))
