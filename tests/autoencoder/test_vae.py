"""The autoencoder: sizes for every factor, ranges, normalisation, weights that travel."""

import pytest
import torch
from torch import nn

from latentfaces.autoencoder import VAE, Encoder

FACTORS = [  # multipliers, patch_size, factor
    ((1, 1, 2), 1, 4),
    ((1, 2), 2, 4),
    ((1, 1, 1, 2), 1, 8),
    ((1, 1, 2), 2, 8),
]


def tiny_vae(multipliers: tuple[int, ...] = (1, 2), patch_size: int = 1, attention: bool = True) -> VAE:
    """Return a VAE of a few thousand random weights, none of them zero."""
    torch.manual_seed(0)
    vae = VAE(3, channels=8, multipliers=multipliers, num_blocks=1, attention=attention, patch_size=patch_size)
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.1)
    return vae


@pytest.mark.parametrize(("multipliers", "patch_size", "factor"), FACTORS)
def test_latents_are_smaller_by_the_factor_and_images_come_back_in_full(
    multipliers: tuple[int, ...], patch_size: int, factor: int
) -> None:
    vae = tiny_vae(multipliers, patch_size)
    reconstructions, posterior = vae(torch.rand(2, 3, 16, 32) * 2 - 1)
    assert vae.downsampling == factor
    assert posterior.mean.shape == posterior.logvar.shape == (2, 3, 16 // factor, 32 // factor)
    assert reconstructions.shape == (2, 3, 16, 32)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_images_stay_within_minus_one_and_one_and_reach_them(patch_size: int) -> None:
    images = tiny_vae(patch_size=patch_size).decode(1e4 * torch.randn(4, 3, 4, 4))
    assert images.abs().max() <= 1
    bright = tiny_vae(patch_size=patch_size)
    nn.init.constant_(bright.decoder.head[-1].bias, 50.0)
    assert torch.equal(bright.decode(torch.zeros(1, 3, 2, 2)), torch.ones(1, 3, 4 * patch_size, 4 * patch_size))


def test_images_are_float32_whatever_the_weights() -> None:
    vae = tiny_vae().bfloat16()
    assert vae.decode(torch.randn(1, 3, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(("multipliers", "patch_size", "factor"), FACTORS)
def test_size_that_does_not_divide_is_refused_with_the_factor(
    multipliers: tuple[int, ...], patch_size: int, factor: int
) -> None:
    vae = tiny_vae(multipliers, patch_size)
    with pytest.raises(ValueError, match=f"30x32 .* factor {factor}"):
        vae.encode(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match=f"32x30 .* factor {factor}"):
        vae.encode(torch.zeros(1, 3, 32, 30))


def test_latents_are_not_normalised_before_they_are_measured() -> None:
    latents = torch.randn(2, 3, 4, 4)
    assert torch.equal(tiny_vae().normalize(latents), latents)


def test_normalised_latents_have_mean_zero_and_standard_deviation_one_per_channel() -> None:
    vae = tiny_vae()
    latents = torch.randn(8, 3, 4, 4) * torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1) + torch.arange(3.0).view(3, 1, 1)
    vae.latent_mean.copy_(latents.mean((0, 2, 3), keepdim=True)[0])
    vae.latent_std.copy_(latents.std((0, 2, 3), keepdim=True)[0])
    normalised = vae.normalize(latents)
    assert torch.allclose(normalised.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normalised.std((0, 2, 3)), torch.ones(3), atol=1e-5)
    assert torch.allclose(vae.denormalize(normalised), latents, atol=1e-4)


def test_latent_statistics_travel_with_the_weights() -> None:
    vae, copy = tiny_vae(), tiny_vae()
    vae.latent_mean.fill_(2.0)
    vae.latent_std.fill_(3.0)
    copy.load_state_dict(vae.state_dict())
    assert torch.equal(copy.normalize(torch.full((1, 3, 1, 1), 8.0)), torch.full((1, 3, 1, 1), 2.0))


def test_encoder_alone_loads_and_encodes_the_same() -> None:
    vae = tiny_vae()
    encoder = Encoder(3, 8, (1, 2), num_blocks=1, attention=True, patch_size=1)
    encoder.load_state_dict(vae.encoder.state_dict())
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(encoder(images).chunk(2, dim=1)[0], vae.encode(images).mean)


def test_forward_decodes_a_draw_and_not_the_mode() -> None:
    vae = tiny_vae()
    images = torch.rand(1, 3, 8, 8)
    first, posterior = vae(images)
    assert not torch.equal(first, vae(images)[0])
    assert not torch.equal(first, vae.decode(posterior.mode()))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_gradients_reach_every_parameter(patch_size: int) -> None:
    vae = tiny_vae(patch_size=patch_size)
    reconstructions, posterior = vae(torch.rand(2, 3, 16, 16))
    (reconstructions.square().mean() + posterior.kl().mean()).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
