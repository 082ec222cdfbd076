"""Rows of the speed table that a user waits for: samples, and images encoded before stage 2."""

from collections.abc import Callable

import torch
from ours import built, built_ldm
from rows import Row, Scale, Work, on_paper, timed
from torch import Tensor

from latentfaces.diffusion import HeunSampler
from latentfaces.pipeline import FacePipeline

PHOTOS = 70_000
"""Number of images of FFHQ."""
STEPS = 18
"""Steps of Heun's method: two evaluations each, one in the last."""


def pipeline_of(scale: Scale) -> FacePipeline:
    """Return a pipeline of untrained networks of the configs that the scale names, in the precision of train.py."""
    autoencoder = built("model=vae", f"model/autoencoder={scale.autoencoder}").network.eval().requires_grad_(False)
    denoiser = built_ldm(f"model/denoiser={scale.denoiser}").network.eval().requires_grad_(False)
    bfloat16 = scale.paper or scale.shipped == "bf16"
    return FacePipeline(autoencoder, denoiser, scale.resolution, scale.device, bfloat16)  # type: ignore[arg-type]


def once(scale: Scale, title: str, work: Callable[[], Tensor]) -> Row:
    """Return a row without a peer."""
    named: dict[str, Work] = {"ours": work}
    return on_paper(title, work) if scale.paper else Row(title, "ms", timed(named, scale))


def faces(scale: Scale) -> Row:
    """Return the row of sampling without guidance."""
    pipeline = pipeline_of(scale)
    noise = torch.randn(scale.faces, *pipeline.latent_shape, device=scale.device)
    title = (
        f"{scale.faces} faces of {scale.resolution} px by {STEPS} steps of Heun, {scale.autoencoder}, {scale.denoiser}"
    )

    def counted() -> Tensor:  # samplers read their times, which fake tensors do not have
        assert pipeline.denoiser is not None
        with torch.no_grad(), pipeline.autocast():
            for _ in range(2 * STEPS - 1):
                pipeline.denoiser(noise, noise[:, 0, 0, 0])
        return pipeline.decode(noise)

    def made() -> Tensor:
        return pipeline.decode(pipeline.sample(noise, HeunSampler(STEPS)))

    return once(scale, title, counted if scale.paper else made)


def encoding(scale: Scale) -> Row:
    """Return the row of encoding images, and the minutes for both mirror images of FFHQ."""
    pipeline = pipeline_of(scale)
    images = torch.rand(scale.faces, 3, scale.resolution, scale.resolution, device=scale.device) * 2 - 1
    title = f"encoding {scale.faces} photos of {scale.resolution} px, {scale.autoencoder}"
    row = once(scale, title, lambda: pipeline.encode(images))
    clock = next(iter(row.figures.values()))
    row.more["minutes for both mirror images of FFHQ"] = (
        max(figure["median"] for figure in clock.values()) * 2 * PHOTOS / scale.faces / 60_000
    )
    return row
