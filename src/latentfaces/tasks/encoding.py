"""Latents and skip features of photos."""

import torch
from torch import Tensor

from latentfaces.autoencoder import Skips
from latentfaces.data.images import to_float
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline


@torch.no_grad()
def encode(pipeline: FacePipeline, images: Tensor, photos: list[int]) -> tuple[Tensor, Skips]:
    """Return normalized latents (b, c, h, w) and encoder features of images (n, 3, R, R) uint8.

    Row i is that of image `photos[i]`. An image is encoded once, however often it occurs.
    """
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
