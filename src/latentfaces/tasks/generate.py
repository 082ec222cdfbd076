"""New faces."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track

from latentfaces.diffusion import Sampler
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.output import PictureFolder

MAX_IN_GRID = 400


@dataclass
class Generate:
    """`num_images` new faces: a grid of the first 400 and one file each.

    Args:
        sampler: from noise to latents.
        num_images: how many.
        seed: names them: face i of a seed is always the same.
        first: number of the first face: `first=1000` goes on where 1,000 faces ended.
        batch_size: how many at once; it changes time and memory, not the faces.
    """

    sampler: Sampler
    num_images: int
    seed: int
    first: int
    batch_size: int

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the pictures; the grid's path."""
        names = [(self.seed, self.first + number) for number in range(self.num_images)]
        shown = []
        batches = pipeline.faces(names, self.sampler, self.batch_size)
        for faces in track(batches, "Generating", total=math.ceil(self.num_images / self.batch_size)):
            pictures.add(faces)
            shown.append(faces)
        images = torch.cat(shown)[:MAX_IN_GRID]
        return pictures.grid(images, columns=math.ceil(math.sqrt(len(images))))
