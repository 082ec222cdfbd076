"""New faces."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track

from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.output import ArrayFile, PictureFolder

MAX_IN_GRID = 400


@dataclass(kw_only=True)
class Generate(SamplingTask):
    """`num_images` new faces: a grid of the first 400, and one file each or one for all.

    Args:
        first: number of the first face: `first=1000` goes on where 1,000 faces ended.
        npz: write all as one array, images.npz, instead of a PNG each.
    """

    first: int
    npz: bool

    def __post_init__(self) -> None:
        if self.first < 0:
            raise UserError(f"task.first={self.first} must be at least 0")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the pictures; the grid's path."""
        ranks = pictures.ranks
        batches_here = ranks.share(math.ceil(self.num_images / self.batch_size))  # as one process alone would make them
        share = range(self.num_images)[batches_here.start * self.batch_size : batches_here.stop * self.batch_size]
        pictures.count = share.start
        names = [(self.seed, self.first + number) for number in share]
        in_grid = len(share[: max(MAX_IN_GRID - share.start, 0)])
        shape = (self.num_images, pipeline.resolution, pipeline.resolution, 3)
        shown = torch.empty(0, 3, *shape[1:3], dtype=torch.uint8)
        with contextlib.ExitStack() as stack:
            array = stack.enter_context(ArrayFile(pictures.folder / "images.npz", shape, ranks)) if self.npz else None
            batches = pipeline.faces(names, self.sampler, self.batch_size)
            for faces in track(batches, "Generating", total=len(batches_here), disable=ranks.rank > 0):
                if array is None:
                    pictures.add(faces)
                else:
                    array.add(faces)
                shown = torch.cat([shown, faces[: in_grid - len(shown)]])
        shown = ranks.join(shown)
        return pictures.grid(shown, columns=math.ceil(math.sqrt(len(shown))))
