"""New samples."""

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track

from latentfaces.bounds import Natural
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.output import PictureFolder, npz_writer

MAX_IN_GRID = 400


@dataclass(kw_only=True)
class Generate(SamplingTask):
    """Sample `num_images` faces: a grid of the first 400, and a PNG each or one array. Ranks share the batches.

    Args:
        first: number of the first sample. `first=1000` continues after 1,000 samples.
        npz: write one array, images.npz, instead of a PNG each.
    """

    first: Natural
    npz: bool

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write the samples. Return the path of the grid."""
        ranks = pictures.ranks
        if self.npz and pictures.credentials is not None:
            raise UserError("mark=c2pa cannot sign an .npz. Leave out task.npz.")
        shape = (self.num_images, pipeline.resolution, pipeline.resolution, 3)
        shown = []
        with contextlib.ExitStack() as stack:
            if self.npz and ranks.rank == 0:
                append = stack.enter_context(npz_writer(pictures.folder / "images.npz", shape, pictures.recipe()))
            rounds = ranks.rounds(range(self.num_images), self.batch_size)
            for part in track(rounds, "Sampling", disable=ranks.rank > 0):
                names = [(self.seed, self.first + number) for number in part]
                faces = torch.empty(0, dtype=torch.uint8)
                if names:  # the last round may have none for this rank
                    faces = pipeline.faces(names, self.sampler, self.batch_size)
                shown.append(ranks.join(faces[: max(MAX_IN_GRID - part.start, 0)]))
                if not self.npz:
                    pictures.count = part.start
                    pictures.add(faces, pipeline.described_labels(names))
                    continue
                faces = ranks.join(faces)
                if ranks.rank == 0:
                    append(faces)
        grid = torch.cat(shown)
        return pictures.grid(grid, columns=math.ceil(math.sqrt(len(grid))))
