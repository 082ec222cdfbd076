"""Interpolation between two faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from latentfaces.bounds import Ge, Natural
from latentfaces.errors import UserError
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.animation import RowTask
from latentfaces.tasks.output import PictureFolder


def slerp(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    """Spherical linear interpolation (Shoemake 1985), which keeps the norm of noise."""
    cosine = torch.sum(start * end) / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return start.lerp(end, fraction)
    return (torch.sin((1 - fraction) * angle) * start + torch.sin(fraction * angle) * end) / torch.sin(angle)


@dataclass(kw_only=True)
class Interpolate(RowTask):
    """A row of `num_images` faces, interpolated in noise.

    The ends are sample `number` of `seed` and sample `to_number` of `to_seed`. With `image` and `to_image`, they are
    generated from the inverted noise of these photos.

    Args:
        to_image: right photo.
        to_seed: seed of the right face.
        number: number of the left face.
        to_number: number of the right face.
    """

    num_images: Annotated[int, Ge(2)]
    to_image: str | None
    to_seed: Natural
    number: Natural = 0
    to_number: Natural = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image is None and (self.seed, self.number) == (self.to_seed, self.to_number):
            raise UserError(
                f"task.to_seed={self.to_seed} gives the face of seed={self.seed} again. Choose another one."
            )
        if (self.image is None) != (self.to_image is None):
            raise UserError("image=LEFT and task.to_image=RIGHT belong together. Give both, or none.")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the row. Return its path."""
        photos = None
        if self.image is not None:
            left = self.own_photos(pipeline, pictures)
            right = self.own_photos(pipeline, pictures, image=self.to_image, key="task.to_image")
            pictures.source = EDITED
            photos = self.noise_of(pipeline, torch.cat([left.images, right.images]))
        fractions = torch.linspace(0, 1, self.num_images).split(self.batch_size)
        faces = torch.cat([self.between(pipeline, photos, part.tolist()) for part in fractions])
        return self.write(faces, pictures)

    def between(self, pipeline: FacePipeline, photos: Tensor | None, fractions: Sequence[float]) -> Tensor:
        """Return faces (n, 3, R, R) uint8 at these fractions; `photos` (2, c, h, w) is the noise of the photos."""
        names = [(self.seed, self.number), (self.to_seed, self.to_number)]
        draw = pipeline.draws(names)

        def interpolated(ends: Tensor) -> Tensor:
            return torch.stack([slerp(ends[0], ends[1], fraction) for fraction in fractions])

        start = draw() if photos is None else photos
        condition = pipeline.condition(pipeline.labels_for(names)) if photos is None else None
        if condition is not None:
            condition = torch.stack([condition[0].lerp(condition[1], fraction) for fraction in fractions])
        # Labels and noise that the sampler adds are interpolated too, so the ends are the faces of their seeds.
        return pipeline.images(interpolated(start), self.sampler, lambda: interpolated(draw()), condition)
