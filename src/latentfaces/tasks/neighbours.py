"""New faces beside the training photos that are nearest to them: did the model learn, or learn by heart?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentfaces.autoencoder import VAE
from latentfaces.data.images import to_float
from latentfaces.data.latents import LatentCache
from latentfaces.data.pack import Pack, open_pack
from latentfaces.errors import UserError
from latentfaces.evaluation.generation import HELD_OUT_SHARE
from latentfaces.evaluation.plots import plot_neighbours
from latentfaces.nn import weights_hash
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks.base import SamplingTask
from latentfaces.tasks.output import PictureFolder, beside

VALUES_AT_ONCE = 2**24
"""Latent values of training photos in memory: 64 MB."""
NUM_HELD_OUT = 256
MAX_SHOWN = 16
"""Faces in distances.png."""


class Nearest(NamedTuple):
    """The k nearest photos of each of n latents, nearest first."""

    indices: Tensor
    """(n, k) places in the pack."""
    mirrored: Tensor
    """(n, k) bool: whether the photo's mirror image was nearer."""
    distances: Tensor
    """(n, k): root of the mean squared difference of normalised latents; about 1.4 between unrelated ones."""


@dataclass(kw_only=True)
class Neighbours(SamplingTask):
    """A line for each of `num_images` new faces: the face, then the `num_neighbours` nearest training photos.

    Photos are compared as they are and mirrored, by their latents. neighbours.json says which they are and how far;
    and, for scale, how far held-out photos are from their nearest training photo: a model that has learnt by heart
    makes faces that are much nearer. distances.png is the grid with the distances, red below what all but a hundredth
    of held-out photos keep.

    Args:
        pack: the run's pack.
        num_neighbours: photos beside each.
    """

    pack: str
    num_neighbours: int

    def __post_init__(self) -> None:
        if self.num_neighbours < 1:
            raise UserError(f"task.num_neighbours={self.num_neighbours} must be at least 1")

    def __call__(self, pipeline: FacePipeline, pictures: PictureFolder) -> Path:
        """Write faces, grid and neighbours.json; the grid's path."""
        pack = open_pack(Path(self.pack))
        there = len(pack.train_indices)
        if self.num_neighbours > there:
            raise UserError(f"task.num_neighbours={self.num_neighbours} is more than the {there} photos trained on")
        faces = pipeline.generate(self.num_images, self.seed, self.sampler, self.batch_size)
        moments = cached_latents(pipeline, pack, self.batch_size)
        normalize = Normalizer(pipeline.vae)
        latents = torch.cat([pipeline.encode(to_float(batch)).float().cpu() for batch in faces.split(self.batch_size)])
        found = nearest(latents, moments, pack.train_indices, self.num_neighbours, normalize)
        usual = self.held_out_distances(pack, moments, normalize)
        pictures.add(faces)
        self.write(pictures, pack, found, usual)
        near = torch.stack([photos(pack, *pair) for pair in zip(found.indices, found.mirrored, strict=True)])
        limit = float(usual.quantile(HELD_OUT_SHARE))
        shown = slice(0, MAX_SHOWN)
        plot_neighbours(faces[shown], near[shown], found.distances[shown], limit, pictures.folder / "distances.png")
        return pictures.grid(*beside(faces, near.flatten(0, 1)))

    def held_out_distances(self, pack: Pack, moments: NDArray[np.float16], normalize: "Normalizer") -> Tensor:
        """Distances (n,) of (up to 256) held-out photos to their nearest training photo."""
        held_out = np.sort(np.random.default_rng(0).permutation(pack.val_indices)[:NUM_HELD_OUT])
        latents = normalize(moments[held_out, 0, 0])
        return nearest(latents, moments, pack.train_indices, 1, normalize).distances[:, 0]

    def write(self, pictures: PictureFolder, pack: Pack, found: Nearest, usual: Tensor) -> None:
        """neighbours.json, and its sum printed."""
        scale, limit = float(usual.median()), float(usual.quantile(HELD_OUT_SHARE))
        names = pack.manifest["names"]
        faces = [
            {
                "picture": f"{number:05d}.png",
                "neighbours": [
                    {"index": i, "name": names[i], "mirrored": m, "distance": round(d, 4)}
                    for i, m, d in zip(*(part[number].tolist() for part in found), strict=True)
                ],
            }
            for number in range(self.num_images)
        ]
        suspicious = float((found.distances[:, 0] < limit).float().mean())
        told = {
            "held_out_median_distance": round(scale, 4),
            "held_out_limit": round(limit, 4),
            "share_below_limit": suspicious,
            "faces": faces,
        }
        (pictures.folder / "neighbours.json").write_text(json.dumps(told, indent=1))
        print(f"median_distance {found.distances[:, 0].median():.4g}")
        print(f"median_distance_of_held_out_photos {scale:.4g}")
        print(f"memorized_fraction {suspicious:.4g}")


class Normalizer:
    """Latents of the cache -> normalised ones, on the CPU.

    Args:
        vae: whose latents they are.
    """

    def __init__(self, vae: VAE) -> None:
        self.mean, self.std = vae.latent_mean.cpu(), vae.latent_std.cpu()

    def __call__(self, latents: NDArray[np.float16]) -> Tensor:
        """(..., c, h, w) float16 -> float32."""
        return (torch.from_numpy(latents.astype(np.float32)) - self.mean) / self.std


def cached_latents(pipeline: FacePipeline, pack: Pack, batch_size: int) -> NDArray[np.float16]:
    """The latents of all photos of the pack (see `LatentCache.open`), made now if training has left none."""

    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = pipeline.vae.encode(images)
        return posterior.mean, posterior.std

    cache = LatentCache(pack, weights_hash(pipeline.vae), encode, batch_size)
    try:
        cache.begin(pipeline.device)
        cache.fill(pipeline.device)
        cache.finish()
    except OSError as error:
        raise UserError(f"{cache.path} cannot be written ({error.strerror}): make {pack.folder} writable") from error
    return cache.open()


def nearest(
    latents: Tensor, moments: NDArray[np.float16], candidates: NDArray[np.int64], count: int, normalize: Normalizer
) -> Nearest:
    """The `count` photos of `candidates` nearest to each of some normalised latents (n, c, h, w), on the CPU.

    The photos are read a few at a time, so that the memory does not grow with their number.
    """
    queries = latents.flatten(1)
    at_once = max(count, VALUES_AT_ONCE // (2 * queries.shape[1]))
    allowed = np.zeros(len(moments), bool)
    allowed[candidates] = True
    best = torch.full((len(queries), count), torch.inf)
    where = torch.zeros((len(queries), count), dtype=torch.int64)
    for start in range(0, len(moments), at_once):
        here = np.flatnonzero(allowed[start : start + at_once]) + start
        if len(here) == 0:
            continue
        views = normalize(moments[here, :, 0]).flatten(2)  # (photos, 2, values)
        products = queries @ views.flatten(0, 1).T
        squares = (views.square().sum(2).flatten() - 2 * products).unflatten(1, (-1, 2))  # less the queries' own
        nearer, view = squares.min(2)
        places = (2 * torch.from_numpy(here) + view).expand_as(view)
        best, order = torch.cat([best, nearer], 1).topk(count, largest=False)
        where = torch.cat([where, places], 1).gather(1, order)
    return sorted_exactly(latents, moments, where, normalize)


def sorted_exactly(latents: Tensor, moments: NDArray[np.float16], where: Tensor, normalize: Normalizer) -> Nearest:
    """Measure again what was found (n, k), by differences: products round off what is left between near neighbours."""
    found, mirrored = where // 2, where % 2
    photos = torch.stack([normalize(moments[i.numpy(), m.numpy(), 0]) for i, m in zip(found, mirrored, strict=True)])
    distances, order = (photos - latents[:, None]).flatten(2).square().mean(2).sqrt().sort(1)
    return Nearest(found.gather(1, order), mirrored.bool().gather(1, order), distances)


def photos(pack: Pack, indices: Tensor, mirrored: Tensor) -> Tensor:
    """Photos (k, 3, R, R) uint8 of a pack, mirrored where said."""
    images = torch.from_numpy(pack.images[indices.numpy()])
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
