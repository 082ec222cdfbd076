"""Samples next to their nearest training images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.bounds import Natural, Positive
from latentfaces.data.images import to_float
from latentfaces.data.latents import LatentCache
from latentfaces.data.pack import Pack, open_pack
from latentfaces.errors import UserError
from latentfaces.evaluation.generation import Nearest, nearest, usual_limit
from latentfaces.evaluation.plots import plot_neighbors
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.output import PictureFolder, beside
from latentfaces.tasks.suspects import train_images

NUM_HELD_OUT = 256
MAX_SHOWN = 16
"""Samples in distances.png."""


@dataclass(kw_only=True)
class Neighbours(SamplingTask):
    """A row for each of `num_images` samples: the sample, then its `num_neighbours` nearest training images.

    The distance is the root mean square difference of normalized latents; about 1.4 between unrelated ones. Training
    images are compared as they are and mirrored. neighbours.json also has the distances of held-out images: a model
    that memorized images makes samples that are much nearer. distances.png is the grid with the distances. Those that
    99 % of held-out images exceed are red.

    Args:
        pack: the run's pack.
        num_neighbours: training images per sample.
        first: number of the first sample.
    """

    pack: str
    num_neighbours: Positive
    first: Natural = 0

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write samples, grid and neighbours.json. Return the path of the grid."""
        pack = open_pack(Path(self.pack))
        names = [(self.seed, self.first + number) for number in range(self.num_images)]
        faces = pipeline.faces(names, self.sampler, self.batch_size)
        moments = cached_moments(pipeline, pack, self.batch_size)
        train = NormalizedLatents(pipeline.vae, moments, pack.train_indices)
        latents = torch.cat([pipeline.encode(to_float(batch)).float().cpu() for batch in faces.split(self.batch_size)])
        found = train.nearest(latents.flatten(1), self.num_neighbours)
        indices = pack.train_indices[found.indices.numpy()]
        chosen = np.sort(np.random.default_rng(0).permutation(pack.val_indices)[:NUM_HELD_OUT])
        held_out = NormalizedLatents(pipeline.vae, moments, chosen)[:][:, 0]
        usual = train.nearest(held_out, 1).distances[:, 0]
        pictures.add(faces, pipeline.described_labels(names))
        pictures.source = EDITED  # the grid shows training images too
        self.write(pictures, pack, indices, found, usual)
        near, limit = train_images(pack, indices, found.views == 1), usual_limit(usual)
        shown = slice(0, MAX_SHOWN)
        pictures.figure(plot_neighbors(faces[shown], near[shown], found.distances[shown], limit), "distances.png")
        return pictures.grid(*beside(faces, near.flatten(0, 1)))

    def write(
        self, pictures: PictureFolder, pack: Pack, indices: NDArray[np.int64], found: Nearest, usual: Tensor
    ) -> None:
        """Write neighbours.json and print its summary."""
        scale, limit = float(usual.median()), usual_limit(usual)
        names = pack.manifest["names"]
        memorized = float((found.distances[:, 0] < limit).float().mean())
        rows = zip(indices.tolist(), found.views.tolist(), found.distances.tolist(), strict=True)
        neighbours = [
            [
                {"index": i, "name": names[i], "mirrored": v == 1, "distance": round(d, 4)}
                for i, v, d in zip(*row, strict=True)
            ]
            for row in rows
        ]
        result = {
            "held_out_median_distance": round(scale, 4),
            "held_out_limit": round(limit, 4),
            "memorized_fraction": memorized,
            "faces": [{"picture": f"{n:05d}.png", "neighbours": row} for n, row in enumerate(neighbours)],
        }
        (pictures.folder / "neighbours.json").write_text(json.dumps(result, indent=1))
        print(f"median_distance {found.distances[:, 0].median():.4g}")
        print(f"median_distance_of_held_out_images {scale:.4g}")
        print(f"memorized_fraction {memorized:.4g}")


class NormalizedLatents:
    """Normalized latents of some images of a pack, read from the latent cache when indexed.

    Args:
        vae: the VAE of the cache.
        moments: the cache, see `LatentCache.open`.
        indices: the images.
    """

    def __init__(self, vae: VAE, moments: NDArray[np.float16], indices: NDArray[np.int64]) -> None:
        self.moments, self.indices = moments, indices
        self.mean, self.std = vae.latent_mean.cpu(), vae.latent_std.cpu()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice) -> Tensor:
        """Return (n, 2, values): each image as it is and mirrored."""
        latents = torch.from_numpy(self.moments[self.indices[rows], :, 0].astype(np.float32))
        return ((latents - self.mean) / self.std).flatten(2)

    def nearest(self, latents: Tensor, count: int) -> Nearest:
        """Find at most `count` nearest images for normalized latents (n, values), with root mean square distances."""
        found = nearest(latents, self, min(count, len(self)))
        return found._replace(distances=found.distances / latents.shape[1] ** 0.5)


def cached_moments(pipeline: FacePipeline, pack: Pack, batch_size: int) -> NDArray[np.float16]:
    """Open the latent cache of the pack. Fill it if training left none."""

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = pipeline.vae.encode(images)
        return posterior.mean, posterior.std

    cache = LatentCache(pack, pipeline.vae.cache_key, encode, batch_size)
    try:
        cache.fill(pipeline.device)
        cache.finish()
    except OSError as error:
        raise UserError(f"{cache.path} cannot be written ({error.strerror}). Make {pack.folder} writable.") from error
    return cache.open()
