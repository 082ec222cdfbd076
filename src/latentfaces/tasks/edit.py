"""A photo drawn anew from the middle of its way to noise (SDEdit: Meng et al. 2022, algorithm 1)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.data.images import to_uint8
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import PhotoTask
from latentfaces.tasks.output import PictureFolder, beside
from latentfaces.tasks.photos import photos_for
from latentfaces.tasks.variants import Name, check_share, check_skips, encode, variants


@dataclass(kw_only=True)
class Edit(PhotoTask):
    """A line for each photo: the photo, then `num_images` faces that keep what is left of it under the noise.

    Args:
        num_photos: at most so many photos.
        strength: the time, in (0, 1] of the run's schedule, to which the photo is made noise: near 0 it stays what the
            VAE makes of it, at 1 nothing is left of it. How much is left between depends on the schedule.
        skips: strength, in [0, 1], of the photo's features where the VAE has skip connections.
    """

    num_photos: int
    strength: float
    skips: float

    def __post_init__(self) -> None:
        check_share("task.strength", self.strength, low_included=False)
        check_share("task.skips", self.skips)

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the edits; the grid's path."""
        check_skips(pipeline, self.skips)
        photos = photos_for(pipeline.resolution, self.image, self.pack, self.num_photos, self.seed)
        shown = []
        for which, names in variants(len(photos), self.num_images, self.seed, self.batch_size):
            x0, features = encode(pipeline, photos, which)
            skips = [self.skips * feature for feature in features] if self.skips else None
            faces = to_uint8(pipeline.decode(self.edited(pipeline, x0, names), skips)).cpu()
            pictures.add(faces)
            shown.append(faces)
        return pictures.grid(*beside(photos, torch.cat(shown)))

    def edited(self, pipeline: FacePipeline, x0: Tensor, names: list[Name]) -> Tensor:
        """The photos' latents (b, c, h, w), each with the noise of its name, drawn anew."""
        draw, predictor = pipeline.draws(names), pipeline.predictor
        noise = draw()
        if self.strength >= predictor.first_time:  # some schedules keep a trace of the photo even there
            return pipeline.sample(noise, self.sampler, draw)
        x_t = predictor.schedule.add_noise(x0, noise, x0.new_full((len(x0),), self.strength))
        with pipeline.autocast():
            return self.sampler.refine(predictor, x_t, self.strength, draw)
