"""The autoencoder: sizes for every choice, ranges, skips, normalisation, weights that travel."""

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentfaces.autoencoder import VAE
from latentfaces.nn import ResBlock, SelfAttention2d

FACTORS = [  # multipliers, patch_size, factor
    ((1, 1, 2), 1, 4),
    ((1, 2), 2, 4),
    ((1, 1, 1, 2), 1, 8),
    ((1, 1, 2), 2, 8),
]


def tiny_vae(multipliers: tuple[int, ...] = (1, 2), patch_size: int = 1, attention: bool = True, **choices: Any) -> VAE:
    """Return a VAE of a few thousand random weights, none of them zero."""
    torch.manual_seed(0)
    options = {"num_blocks": 1, **choices}
    vae = VAE(3, channels=8, multipliers=multipliers, attention=attention, patch_size=patch_size, **options)
    for parameter in vae.parameters():
        nn.init.normal_(parameter, std=0.1)
    return vae


def num_of(kind: type[nn.Module], levels: nn.ModuleList) -> list[int]:
    """Modules of a kind in each level."""
    return [sum(isinstance(module, kind) for module in level.modules()) for level in levels]


def without_gradient(vae: VAE) -> list[str]:
    """Names of the parameters that no gradient reached."""
    return [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def mode_and_skips(vae: VAE, num_photos: int = 2) -> tuple[Tensor, list[Tensor]]:
    """Latents and skips of random photos."""
    posterior, skips = vae.encode_with_skips(torch.rand(num_photos, 3, 16, 16) * 2 - 1)
    return posterior.mode(), skips


@pytest.mark.parametrize(("multipliers", "patch_size", "factor"), FACTORS)
def test_latents_are_smaller_by_the_factor_and_images_come_back_in_full(
    multipliers: tuple[int, ...], patch_size: int, factor: int
) -> None:
    vae = tiny_vae(multipliers, patch_size)
    reconstructions, posterior, latents = vae(torch.rand(2, 3, 16, 32) * 2 - 1)
    assert vae.downsampling == factor
    assert posterior.mean.shape == posterior.logvar.shape == latents.shape == (2, 3, 16 // factor, 32 // factor)
    assert reconstructions.shape == (2, 3, 16, 32)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_images_stay_within_minus_one_and_one_and_reach_them(patch_size: int) -> None:
    images = tiny_vae(patch_size=patch_size).decode(1e4 * torch.randn(4, 3, 4, 4))
    assert images.abs().max() <= 1
    bright = tiny_vae(patch_size=patch_size)
    nn.init.constant_(bright.decoder.head[-1].bias, 50.0)
    assert torch.equal(bright.decode(torch.zeros(1, 3, 2, 2)), torch.ones(1, 3, 4 * patch_size, 4 * patch_size))


def test_linear_output_is_the_one_that_tanh_bends() -> None:
    latents = torch.randn(2, 3, 4, 4)
    bent, linear = tiny_vae(output="tanh"), tiny_vae(output="linear")
    for vae in (bent, linear):
        nn.init.constant_(vae.decoder.head[-1].bias, 1.5)
    assert linear.decode(latents).max() > 1.4
    assert torch.equal(linear.decode(latents).tanh(), bent.decode(latents))


@pytest.mark.parametrize("output", ["tanh", "linear"])
def test_images_are_float32_whatever_the_weights(output: str) -> None:
    vae = tiny_vae(output=output).bfloat16()
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
    encoder = VAE(3, channels=8, multipliers=(1, 2), num_blocks=1).encoder
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(encoder(images).chunk(2, dim=1)[0], vae.encode(images).mean)
    encoder.load_state_dict(vae.encoder.state_dict())
    assert torch.equal(encoder(images).chunk(2, dim=1)[0], vae.encode(images).mean)


def test_forward_decodes_the_draw_that_it_returns_and_not_the_mode() -> None:
    vae = tiny_vae()
    images = torch.rand(1, 3, 8, 8)
    first, posterior, latents = vae(images)
    assert torch.equal(first, vae.decode(latents))
    assert not torch.equal(first, vae(images)[0])
    assert not torch.equal(first, vae.decode(posterior.mode()))


@pytest.mark.parametrize("patch_size", [1, 2])
def test_gradients_reach_every_parameter(patch_size: int) -> None:
    vae = tiny_vae(patch_size=patch_size)
    reconstructions, posterior, _ = vae(torch.rand(2, 3, 16, 16))
    (reconstructions.square().mean() + posterior.kl().mean()).backward()
    assert without_gradient(vae) == []


@pytest.mark.parametrize("upsample", ["nearest", "bilinear", "shuffle"])
@pytest.mark.parametrize("downsample", ["strided", "mean", "unshuffle"])
def test_every_way_to_change_the_size_gives_the_same_sizes_and_gradients_to_every_parameter(
    downsample: str, upsample: str
) -> None:
    choices = {"downsample": downsample, "upsample": upsample, "skip_connections": True}
    vae = tiny_vae((1, 2, 2), attention=False, attention_levels=[1], **choices)
    reconstructions, posterior, _ = vae(torch.rand(2, 3, 8, 16), skip_dropout=0.0)
    assert posterior.mean.shape == (2, 3, 2, 4)
    assert reconstructions.shape == (2, 3, 8, 16)
    (reconstructions.square().mean() + posterior.kl().mean()).backward()
    assert without_gradient(vae) == []


@pytest.mark.parametrize(("num_blocks", "per_level"), [(2, [2, 2, 2]), ([1, 3, 2], [1, 3, 2])])
def test_each_level_has_its_number_of_residual_blocks(num_blocks: int | list[int], per_level: list[int]) -> None:
    vae = tiny_vae((1, 1, 2), num_blocks=num_blocks)
    assert num_of(ResBlock, vae.encoder.levels) == per_level
    assert num_of(ResBlock, vae.decoder.levels) == per_level[::-1]


@pytest.mark.parametrize("num_blocks", [[1, 2], [1, 2, 3, 4], []])
def test_numbers_of_blocks_that_are_not_one_for_each_level_are_refused(num_blocks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"num_blocks=\[.*\] must be one number, or one for each of 3 levels"):
        tiny_vae((1, 1, 2), num_blocks=num_blocks)


@pytest.mark.parametrize(("levels", "per_level"), [((), [0, 0, 0]), ([0, 2], [2, 0, 2]), ({1}, [0, 2, 0])])
def test_attention_follows_each_block_of_exactly_the_levels_that_were_asked_for(
    levels: Collection[int], per_level: list[int]
) -> None:
    vae = tiny_vae((1, 1, 2), num_blocks=2, attention_levels=levels)
    assert num_of(SelfAttention2d, vae.encoder.levels) == per_level
    assert num_of(SelfAttention2d, vae.decoder.levels) == per_level[::-1]
    for level in (*vae.encoder.levels, *vae.decoder.levels):
        kinds = [type(module) for module in level]
        assert kinds in ([ResBlock, ResBlock], [ResBlock, SelfAttention2d, ResBlock, SelfAttention2d])


@pytest.mark.parametrize("attention", [True, False])
def test_attention_in_the_middle_is_a_choice_of_its_own(attention: bool) -> None:
    vae = tiny_vae(attention=attention)
    assert num_of(SelfAttention2d, nn.ModuleList([vae.encoder.middle, vae.decoder.middle])) == [int(attention)] * 2


@pytest.mark.parametrize("level", [2, -1])
def test_attention_in_a_level_that_is_not_there_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=rf"attention_levels=\[{level}\]: with 2 multipliers levels are 0 to 1"):
        tiny_vae((1, 2), attention_levels=[0, level])


def test_skips_say_nothing_at_the_start_of_training() -> None:
    torch.manual_seed(0)
    vae = VAE(3, channels=8, multipliers=(1, 2, 2), num_blocks=1, skip_connections=True)
    latents, skips = mode_and_skips(vae)
    assert torch.equal(vae.decode(latents, skips), vae.decode(latents))


def test_skips_have_the_sizes_of_all_levels_but_the_lowest_finest_first() -> None:
    _, skips = mode_and_skips(tiny_vae((1, 2, 3), patch_size=2, skip_connections=True))
    assert [tuple(skip.shape) for skip in skips] == [(2, 8, 8, 8), (2, 16, 4, 4)]


def test_every_skip_changes_the_picture_unless_it_is_scaled_to_nothing() -> None:
    vae = tiny_vae((1, 2, 2), skip_connections=True)
    latents, skips = mode_and_skips(vae)
    without = vae.decode(latents)
    assert torch.equal(vae.decode(latents, [0.0 * skip for skip in skips]), without)
    for strengths in ((1.0, 0.0), (0.0, 1.0)):
        scaled = [strength * skip for strength, skip in zip(strengths, skips, strict=True)]
        assert not torch.allclose(vae.decode(latents, scaled), without, atol=1e-3)


def test_skip_dropout_decodes_each_sample_with_or_without_skips() -> None:
    vae = tiny_vae((1, 2, 2), skip_connections=True)
    images = torch.rand(16, 3, 8, 8)
    _, skips = vae.encode_with_skips(images)
    shares = []
    for dropout in (0.0, 0.5, 1.0):
        reconstructions, _, latents = vae(images, skip_dropout=dropout)
        expected = {True: vae.decode(latents, skips), False: vae.decode(latents)}
        is_like = {
            kept: torch.isclose(reconstructions, picture, atol=1e-6).flatten(1).all(1)
            for kept, picture in expected.items()
        }
        assert torch.equal(is_like[True], ~is_like[False])
        shares.append(is_like[True].float().mean().item())
    assert shares[0] == 1.0
    assert 0.0 < shares[1] < 1.0
    assert shares[2] == 0.0


def test_skip_dropout_keeps_the_precision_of_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, dtypes = tiny_vae(skip_connections=True).bfloat16(), list[torch.dtype]()

    def decode(latents: Tensor, skips: list[Tensor]) -> Tensor:
        dtypes.extend(skip.dtype for skip in skips)
        return latents

    monkeypatch.setattr(vae, "decode", decode)
    vae(torch.zeros(2, 3, 16, 16, dtype=torch.bfloat16), 0.5)
    assert set(dtypes) == {torch.bfloat16}


def test_skip_dropout_is_a_probability() -> None:
    vae = tiny_vae((1, 1), attention=False, skip_connections=True)
    images = torch.rand(1, 3, 2, 2).expand(4000, 3, 2, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        reconstructions, _, latents = vae(images, skip_dropout=0.8)
        kept = ~torch.isclose(reconstructions, vae.decode(latents), atol=1e-6).flatten(1).all(1)
    error = (0.8 * 0.2 / len(images)) ** 0.5
    assert kept.float().mean().item() == pytest.approx(0.2, abs=4 * error)


def test_skips_need_a_vae_that_was_built_for_them() -> None:
    _, skips = mode_and_skips(tiny_vae(skip_connections=True))
    with pytest.raises(ValueError, match="built without skip connections"):
        tiny_vae().decode(torch.zeros(2, 3, 8, 8), skips)


def test_vae_of_one_level_has_no_skips_to_connect_and_works_all_the_same() -> None:
    vae = tiny_vae((1,), patch_size=4, skip_connections=True)
    reconstructions, _, latents = vae(torch.rand(2, 3, 8, 8), skip_dropout=0.0)
    assert torch.equal(reconstructions, vae.decode(latents))


def test_generation_with_skip_connections_needs_no_encoder() -> None:
    vae = tiny_vae(skip_connections=True)
    latents = torch.randn(2, 3, 4, 4)
    expected = vae.decode(latents)
    del vae.encoder
    assert torch.equal(vae.decode(latents), expected)


def test_gradient_checkpointing_computes_levels_twice_and_changes_no_number() -> None:
    images = torch.rand(2, 3, 16, 16)
    losses, gradients, num_calls = [], [], []
    for checkpointing in (False, True):
        choices = {"skip_connections": True, "attention_levels": [0], "gradient_checkpointing": checkpointing}
        vae = tiny_vae((1, 2), **choices)
        calls: list[nn.Module] = []
        for part in (*vae.encoder.levels, *vae.decoder.levels, vae.encoder.middle, vae.decoder.middle):
            part[0].register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module))
        torch.manual_seed(1)
        reconstructions, posterior, _ = vae(images, skip_dropout=0.5)
        loss = reconstructions.square().mean() + posterior.kl().mean()
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in vae.named_parameters()})
        num_calls.append(len(calls))
    assert num_calls == [6, 12]
    assert torch.equal(*losses)
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-7) for name in gradients[0])


def test_a_light_decoder_has_its_own_channels() -> None:
    vae = VAE(3, channels=16, multipliers=[1, 2], num_blocks=1, attention=False, decoder_channels=8)
    assert vae.encoder.stem.out_channels == 16
    assert vae.decoder.stem.out_channels == 2 * 8
    assert vae.decode(vae.encode(torch.zeros(1, 3, 8, 8)).mean).shape == (1, 3, 8, 8)
