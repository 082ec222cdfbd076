"""A run as an object: memory that is bounded, faces that do not depend on how they are computed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latentfaces import pipeline as module
from latentfaces.autoencoder import VAE
from latentfaces.pipeline import FacePipeline

CPU = torch.device("cpu")


def small_vae(**options: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(2, 8, (1, 2), 1, attention=False, **options).eval().requires_grad_(False)


@pytest.fixture
def pixels_seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the pixels of each call of encoder and decoder, at most 4 x 256."""
    monkeypatch.setitem(module.PIXELS_AT_ONCE, "cpu", 4 * 256)
    seen: list[int] = []
    encode, decode = VAE.encode_with_skips, VAE.decode

    def note_encode(vae: VAE, images: Tensor) -> Any:
        seen.append(images.shape[0] * images.shape[2] * images.shape[3])
        return encode(vae, images)

    def note_decode(vae: VAE, latents: Tensor, *more: Any) -> Tensor:
        images = decode(vae, latents, *more)
        seen.append(images.shape[0] * images.shape[2] * images.shape[3])
        return images

    monkeypatch.setattr(VAE, "encode_with_skips", note_encode)
    monkeypatch.setattr(VAE, "decode", note_decode)
    return seen


def test_few_pictures_at_a_time_give_what_all_at_once_give(pixels_seen: list[int]) -> None:
    vae = small_vae(skip_connections=True)
    pipeline = FacePipeline(vae, None, 16, CPU)
    images = torch.rand(11, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior, skips = vae.encode_with_skips(images)
        whole = vae.decode(posterior.mode(), skips)
    pixels_seen.clear()
    latents = pipeline.encode(images)
    assert torch.allclose(latents, vae.normalize(posterior.mode()), atol=1e-5)
    assert torch.allclose(pipeline.decode(latents, skips), whole, atol=1e-5)
    assert torch.allclose(pipeline.reconstruct(images, skips=1.0), whole, atol=1e-5)
    assert max(pixels_seen) == 4 * 256
    assert len(pixels_seen) == 3 + 3 + 6


def test_a_picture_above_the_bound_is_taken_alone(pixels_seen: list[int]) -> None:
    pipeline = FacePipeline(small_vae(), None, 64, CPU)
    pipeline.decode(torch.zeros(3, 2, 32, 32))
    assert pixels_seen == [64 * 64] * 3


def test_no_two_seeds_share_a_face() -> None:
    pipeline = FacePipeline(small_vae(), None, 16, CPU)
    names = [(0, 45_592), (4295, 3), (0, 0), (0, 1), (1, 0), (2**32 - 1, 1)]
    noise = pipeline.noise(names)
    assert (torch.cdist(noise.flatten(1), noise.flatten(1)) + 99 * torch.eye(6)).min() > 1
    assert torch.equal(pipeline.noise(names[1:2]), noise[1:2])
    many = pipeline.noise([(3, number) for number in range(2000)])
    assert abs(float(many.mean())) < 0.01
    assert abs(float(many.std()) - 1) < 0.01


def test_a_device_may_be_a_word() -> None:
    pipeline = FacePipeline(small_vae(), None, 16, device="cpu")
    assert pipeline.device == CPU
    assert pipeline.encode(torch.zeros(1, 3, 16, 16)).shape == (1, 2, 8, 8)
