"""Samples similar to a photo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from latentfaces.bounds import Interval, Positive
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import PackTask, SamplingTask
from latentfaces.tasks.interpolate import slerp
from latentfaces.tasks.output import PictureFolder, beside


@dataclass(kw_only=True)
class Variations(PackTask, SamplingTask):
    """A row for each photo: the photo, then `num_images` samples whose noise mixes its inverted noise with fresh noise.

    Args:
        num_photos: maximum number of photos.
        amount: fraction of fresh noise, between 0 and 1.
    """

    num_photos: Positive
    amount: Annotated[float, Interval(gt=0, lt=1)]

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the variations. Return the path of the grid."""
        pictures.source = EDITED
        photos = self.photos(pipeline, pictures, self.num_photos)
        own = self.noise_of(pipeline, photos.images)
        shown = []
        for which, names in self.variants(len(photos.images)):
            fresh = pipeline.noise(names)
            noise = torch.stack([slerp(own[p], other, self.amount) for p, other in zip(which, fresh, strict=True)])
            faces = pipeline.images(noise, self.sampler)
            photos.save(faces, which, pictures)
            shown.append(faces)
        return pictures.grid(*beside(photos.images, torch.cat(shown)))
