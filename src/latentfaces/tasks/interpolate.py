"""Interpolation between two faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.animation import Animation, check_animation, save_animation, there_and_back
from latentfaces.tasks.base import PhotoTask
from latentfaces.tasks.invert import found_noise
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.photos import one_photo


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """`share` of the way from start to end along the great circle (Shoemake 1985): noise stays as long as noise is."""
    cosine = torch.sum(start * end) / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return start.lerp(end, share)
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


@dataclass(kw_only=True)
class Interpolate(PhotoTask):
    """A row of `num_images` faces from one to another, through noise, and an animation there and back.

    The ends are the first faces of `seed` and `to_seed` or, where given, the photos `image` and `to_image`, nearly:
    what comes of their inverted noise.

    Args:
        to_image: the photo at the right.
        to_seed: the face at the right.
        animation: "gif", "mp4" (needs PyAV) or "none".
        frames_per_second: of the animation.
    """

    to_image: str | None
    to_seed: int
    animation: Animation
    frames_per_second: float

    def __post_init__(self) -> None:
        if self.num_images < 2:
            raise UserError(f"num_images={self.num_images} must be at least 2: the row has both ends in it")
        check_animation(self.animation, self.frames_per_second)
        if self.image is None and self.to_image is not None:
            raise UserError(f"task.to_image={self.to_image} is the photo at the right: type image=... for the left")
        if self.image is not None and self.to_image is None:
            raise UserError(f"image={self.image} is the photo at the left: type task.to_image=... for the right")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the pictures; the row's path."""
        photos = self.photos_in_noise(pipeline)
        shares = torch.linspace(0, 1, self.num_images).split(self.batch_size)
        faces = torch.cat([self.between(pipeline, photos, part.tolist()) for part in shares])
        pictures.add(faces)
        if self.animation != "none":
            path = pictures.folder / f"animation.{self.animation}"
            save_animation(there_and_back(faces), path, self.frames_per_second, pictures.text()["latentfaces"])
            print(path)
        return pictures.grid(faces, columns=len(faces))

    def photos_in_noise(self, pipeline: FacePipeline) -> Tensor | None:
        """Noise (2, c, h, w) from which the two photos come; None between seeds."""
        if self.image is None or self.to_image is None:
            return None
        left = one_photo(pipeline.resolution, self.image, self.seed)
        right = one_photo(pipeline.resolution, self.to_image, self.seed, key="task.to_image")
        return found_noise(pipeline, torch.cat([left, right]), self.sampler, self.batch_size)

    def between(self, pipeline: FacePipeline, photos: Tensor | None, shares: Sequence[float]) -> Tensor:
        """Faces (n, 3, R, R) uint8 at these shares of the way."""
        draw = pipeline.draws([(self.seed, 0), (self.to_seed, 0)])

        def on_the_way(ends: Tensor) -> Tensor:
            return torch.stack([slerp(ends[0], ends[1], share) for share in shares])

        start = draw() if photos is None else photos
        # All noise of a sampler that adds some lies between that of the ends, which are so the faces of their seeds.
        return pipeline.images(on_the_way(start), self.sampler, lambda: on_the_way(draw()))
