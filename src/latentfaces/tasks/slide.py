"""One face along a direction."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from latentfaces.bounds import Len
from latentfaces.diffusion import Sampler
from latentfaces.diffusion.directions import FeatureDirections
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline, Name
from latentfaces.tasks.animation import RowTask
from latentfaces.tasks.output import PictureFolder


@dataclass(kw_only=True)
class Slide(RowTask):
    """A row of `num_images` versions of one face along a direction.

    The face is the first sample of `seed`. With `image`, it is generated from the inverted noise of this photo.

    Args:
        directions: the run's directions.npz, which task=directions writes.
        direction: name of the direction.
        range: lowest and highest strength, in standard deviations of the run's samples.
    """

    directions: str
    direction: str | None
    range: Annotated[Sequence[float], Len(2, 2)]

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the row. Return its path."""
        directions = FeatureDirections.load(Path(self.directions))
        directions.check_name(self.direction)
        assert self.direction is not None
        noise = None
        if self.image is not None:
            photo = self.own_photos(pipeline, pictures)
            noise = self.noise_of(pipeline, photo.images)
            pictures.source = EDITED
        low, high = self.range
        strengths, names = torch.linspace(low, high, self.num_images), [(self.seed, 0)] * self.num_images
        faces = slid(pipeline, directions, self.direction, strengths, names, self.sampler, self.batch_size, noise)
        return self.write(faces, pictures)


def slid(
    pipeline: FacePipeline,
    directions: FeatureDirections,
    direction: str,
    strengths: Tensor,
    names: Sequence[Name],
    sampler: Sampler,
    batch_size: int,
    noise: Tensor | None = None,
) -> Tensor:
    """Return samples (n, 3, R, R) uint8, shifted along a direction.

    Args:
        pipeline, directions: of one run.
        direction: name of the direction.
        strengths: (n,) strength for each sample.
        names: (n,) name of each sample.
        sampler: maps noise to latents.
        batch_size: samples at once.
        noise: inverted noise (1, c, h, w) of a photo, instead of that of the names.
    """
    network, faces = pipeline.required_denoiser().network, []
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        with directions.applied(network, direction, strengths[start : start + batch_size]):
            if noise is None:
                faces.append(pipeline.faces(batch, sampler, batch_size))
            else:
                faces.append(pipeline.images(noise.expand(len(batch), -1, -1, -1), sampler))
    return torch.cat(faces)
