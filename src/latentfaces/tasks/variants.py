"""Several pictures of one photo: which noise belongs to which, and the way from a photo to latents."""

from collections.abc import Iterator

import torch
from rich.progress import track
from torch import Tensor

from latentfaces.autoencoder import Skips
from latentfaces.data.images import to_float
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline

Name = tuple[int, int]
"""Seed and number of a face."""


def variants(num_photos: int, num_images: int, seed: int, batch_size: int) -> Iterator[tuple[list[int], list[Name]]]:
    """Batches of (photo, name), `num_images` of each photo in turn.

    Variant i of any photo has the noise of face i of the seed: it depends on nothing else.
    """
    pairs = [(photo, (seed, number)) for photo in range(num_photos) for number in range(num_images)]
    for start in track(range(0, len(pairs), batch_size), "Drawing"):
        batch = pairs[start : start + batch_size]
        yield [photo for photo, _ in batch], [name for _, name in batch]


@torch.no_grad()
def encode(pipeline: FacePipeline, images: Tensor, photos: list[int]) -> tuple[Tensor, Skips]:
    """Normalised latents (b, c, h, w) and encoder features of some images of (n, 3, R, R) uint8, each encoded once."""
    unique, where = torch.unique(torch.tensor(photos), return_inverse=True)
    with pipeline.autocast():
        posterior, features = pipeline.vae.encode_with_skips(to_float(images[unique]).to(pipeline.device))
        latents = pipeline.vae.normalize(posterior.mode())
    where = where.to(pipeline.device)
    return latents[where], [feature[where] for feature in features]


def check_skips(pipeline: FacePipeline, skips: float) -> None:
    """Refuse `task.skips` where the VAE has none.

    Raises:
        UserError: naming the key.
    """
    if skips and not pipeline.vae.skip_connections:
        raise UserError(f"task.skips={skips}: this run's VAE has no skip connections; leave task.skips out")


def check_share(key: str, value: float, low_included: bool = True, high_included: bool = True) -> None:
    """Refuse what is not a share of 1.

    Raises:
        UserError: naming the key.
    """
    above = value >= 0 if low_included else value > 0
    below = value <= 1 if high_included else value < 1
    if not (above and below):
        low = "at least 0" if low_included else "above 0"
        high = "at most 1" if high_included else "below 1"
        raise UserError(f"{key}={value} must be {low} and {high}")
