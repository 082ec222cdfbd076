"""From one face to another."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentfaces.diffusion import Sampler
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.output import PictureFolder


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """`share` of the way from start to end along the great circle (Shoemake 1985): noise stays as long as noise is."""
    cosine = torch.sum(start * end) / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle < 1e-4:
        return start.lerp(end, share)
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


@dataclass
class Interpolate:
    """A row of `num_images` faces from the first face of `seed` to the first of `to_seed`, through noise.

    Args:
        sampler: from noise to latents.
        num_images: faces in the row, both ends included.
        seed: the face at the left.
        to_seed: the face at the right.
        batch_size: how many at once.
    """

    sampler: Sampler
    num_images: int
    seed: int
    to_seed: int
    batch_size: int

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the pictures; the row's path."""
        start, end = pipeline.noise([(self.seed, 0), (self.to_seed, 0)])
        shares = torch.linspace(0, 1, self.num_images).tolist()
        noise = torch.stack([slerp(start, end, share) for share in shares])
        faces = torch.cat(list(pipeline.faces_from_noise(noise, self.sampler, self.batch_size)))
        pictures.add(faces)
        return pictures.grid(faces, columns=len(faces))
