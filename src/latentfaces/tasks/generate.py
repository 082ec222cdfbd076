"""New samples."""

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
    """Sample `num_images` faces: a grid of the first 400, and a PNG each or one array.

    Args:
        first: number of the first sample. `first=1000` continues after 1,000 samples.
        npz: write one array, images.npz, instead of a PNG each.
    """

    first: int
    npz: bool

    def __post_init__(self) -> None:
        if self.first < 0:
            raise UserError(f"task.first={self.first} must be at least 0")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the samples. Return the path of the grid."""
        ranks = pictures.ranks
        batches_here = ranks.share(math.ceil(self.num_images / self.batch_size))  # the batches of a single process
        mine = range(self.num_images)[batches_here.start * self.batch_size : batches_here.stop * self.batch_size]
        pictures.count = mine.start
        names = [(self.seed, self.first + number) for number in mine]
        in_grid = len(mine[: max(MAX_IN_GRID - mine.start, 0)])
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
