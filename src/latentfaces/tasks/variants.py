"""Several results per photo: their noise, and the latents of the photos."""

from collections.abc import Iterator

import torch
from rich.progress import track
from torch import Tensor

from latentfaces.autoencoder import Skips
from latentfaces.data.images import to_float
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline, Name


def variants(num_photos: int, num_images: int, seed: int, batch_size: int) -> Iterator[tuple[list[int], list[Name]]]:
    """Yield batches of (photo, name), `num_images` of each photo in turn.

    Result i of any photo has the noise of sample i of the seed.
    """
    pairs = [(photo, (seed, number)) for photo in range(num_photos) for number in range(num_images)]
    for start in track(range(0, len(pairs), batch_size), "Sampling"):
        batch = pairs[start : start + batch_size]
        yield [photo for photo, _ in batch], [name for _, name in batch]


@torch.no_grad()
def encode(pipeline: FacePipeline, images: Tensor, photos: list[int]) -> tuple[Tensor, Skips]:
    """Return normalized latents (b, c, h, w) and encoder features of `photos` among images (n, 3, R, R) uint8."""
    unique, where = torch.unique(torch.tensor(photos), return_inverse=True)
    with pipeline.autocast():
        posterior, features = pipeline.vae.encode_with_skips(to_float(images[unique]).to(pipeline.device))
        latents = pipeline.vae.normalize(posterior.mode())
    where = where.to(pipeline.device)
    return latents[where], [feature[where] for feature in features]


def check_skips(pipeline: FacePipeline, skips: float) -> None:
    """Raise UserError if `task.skips` is set and the VAE has no skip connections."""
    if skips and not pipeline.vae.skip_connections:
        raise UserError(f"task.skips={skips}: this run's VAE has no skip connections. Leave out task.skips.")
