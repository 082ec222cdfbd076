"""A picture decoded strip by strip is the picture decoded whole."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentfaces.autoencoder import VAE, strips

SIZES: dict[str, dict[str, Any]] = {
    "three levels": {"multipliers": (1, 2, 2)},
    "bilinear": {"upsample": "bilinear"},
    "shuffle": {"upsample": "shuffle"},
    "patches": {"patch_size": 2},
    "attention in a fine level": {"multipliers": (1, 2, 2), "attention_levels": [1]},
    "attention in all levels": {"attention_levels": [0, 1]},
    "linear": {"output": "linear"},
    "one level": {"multipliers": (1,), "patch_size": 4},
}


def vae_of(**options: Any) -> VAE:
    """A small VAE in which every weight matters."""
    torch.manual_seed(0)
    vae = VAE(**{"channels": 16, "multipliers": (1, 2), "num_blocks": 2} | options)
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.dim() > 1 else 0.5)
    return vae.eval().requires_grad_(False)


def latents_of(vae: VAE, height: int = 23, width: int = 12) -> Tensor:
    """Latents that differ in level from top to bottom, so that no strip has the statistics of the whole."""
    slope = torch.linspace(-3, 3, height)[:, None]
    return torch.randn(2, vae.latent_channels, height, width) + slope


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("options", SIZES.values(), ids=SIZES.keys())
def test_strips_give_the_whole_picture(options: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = vae_of(**options)
    latents = latents_of(vae)
    monkeypatch.setattr(strips, "PIXELS", rows * 4 * 12 * vae.downsampling)
    whole = vae.decode(latents)
    assert whole.std() > 0.1
    assert torch.allclose(vae.decode(latents, strips=True), whole, rtol=0, atol=1e-5 * whole.abs().max())
    assert not any(part._forward_hooks for part in vae.modules())  # nothing stays behind


def test_strips_with_skips_give_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = vae_of(multipliers=(1, 2, 2), skip_connections=True)
    monkeypatch.setattr(strips, "PIXELS", 300)
    _, skips = vae.encode_with_skips(torch.rand(2, 3, 40, 32) * 2 - 1)
    latents = latents_of(vae, 10, 8)
    whole = vae.decode(latents, skips)
    assert (whole - vae.decode(latents)).abs().max() > 0.1
    assert torch.allclose(vae.decode(latents, skips, strips=True), whole, atol=1e-5)


def test_no_layer_sees_more_than_a_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = vae_of()
    latents = latents_of(vae, 64, 12)
    monkeypatch.setattr(strips, "PIXELS", 24 * 24)
    most = 0

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal most
        most = max(most, output.shape[-2])

    for convolution in [vae.decoder.ups[0].conv, vae.decoder.levels[1][0].conv1, vae.decoder.head[-1]]:  # type: ignore[union-attr, index]
        convolution.register_forward_hook(note)
    vae.decode(latents, strips=True)
    assert 0 < most < 0.5 * 128


def test_bfloat16_strips_are_as_near_as_bfloat16_is(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = vae_of()
    latents = latents_of(vae)
    monkeypatch.setattr(strips, "PIXELS", 500)
    exact = vae.decode(latents)
    with torch.autocast("cpu", torch.bfloat16):
        whole, parts = vae.decode(latents), vae.decode(latents, strips=True)
    assert parts.dtype == whole.dtype
    assert (parts - exact).abs().mean() < 1.5 * (whole - exact).abs().mean()
