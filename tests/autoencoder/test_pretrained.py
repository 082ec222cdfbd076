"""VAEs of other projects, from random weights in their files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pretrained_files import write_taesd

from latentfaces.autoencoder import TAESD, load_pretrained
from latentfaces.autoencoder.pretrained import Block
from latentfaces.errors import UserError
from latentfaces.evaluation.features import EncoderFeatures
from latentfaces.run import build


@pytest.mark.parametrize(("channels", "pooled"), [(4, False), (16, False), (32, True)])
@torch.no_grad()
def test_taesd_is_built_from_its_two_files(tmp_path: Path, channels: int, pooled: bool) -> None:
    original = write_taesd(tmp_path, latent_channels=channels, pooled=pooled)
    config, vae = load_pretrained(f"taesd:{tmp_path}")
    images = torch.rand(2, 3, 32, 16) * 2 - 1
    posterior = vae.encode(images)
    torch.testing.assert_close(posterior.mean, original.encoder((images + 1) / 2))
    assert posterior.mean.shape == (2, channels, 4, 2)
    assert posterior.std.max() < 1e-6
    torch.testing.assert_close(vae.decode(posterior.mean), 2 * original.decoder(posterior.mean) - 1)
    rebuilt = build(config)
    rebuilt.load_state_dict(vae.state_dict())
    assert torch.equal(rebuilt.encode(images).mean, posterior.mean)
    assert rebuilt.licence == "MIT"
    with pytest.raises(ValueError, match="12x16 are not a multiple of the VAE's factor 8"):
        vae.encode(images[..., :12, :])


def test_taef2_has_the_size_of_the_published_files() -> None:
    assert sum(p.numel() for p in TAESD(32, pooled=True).parameters()) == 2_677_027


@torch.no_grad()
def test_the_pooled_branch_is_added_before_the_convolutions() -> None:
    block, x = Block(pool=True), torch.randn(1, 64, 4, 4)
    pooled = x + block.pool(x)
    torch.testing.assert_close(block(x), torch.relu(pooled + block.conv(pooled)))


def test_statistics_are_those_of_samples_of_the_posterior() -> None:
    torch.manual_seed(0)
    vae, mean = TAESD(3), torch.randn(500, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1) + 5
    assert not vae.measured
    std = torch.rand_like(mean)
    key = vae.cache_key
    vae.measure(torch.stack([mean, std], dim=1).split(64))
    samples = (mean + std * torch.randn(20, *mean.shape)).transpose(0, 2).flatten(1)
    torch.testing.assert_close(vae.latent_mean.flatten(), samples.mean(1), rtol=0, atol=0.02)
    torch.testing.assert_close(vae.latent_std.flatten(), samples.std(1), rtol=0.01, atol=0)
    assert vae.measured
    assert vae.cache_key == key  # a resumed run uses the same latent cache
    constant = TAESD(3)
    constant.measure([torch.stack([torch.ones(4, 3, 2, 2), torch.zeros(4, 3, 2, 2)], dim=1)])
    assert constant.normalize(torch.ones(1, 3, 2, 2)).abs().max() == 0


def test_encoder_features_see_each_level() -> None:
    features = EncoderFeatures(TAESD(4))(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))
    assert features.shape == (2, 2 * (3 * 64 + 4))
    assert not torch.equal(features[0], features[1])


def truncate(folder: Path) -> None:
    path = folder / "tiny_decoder.pth"
    path.write_bytes(path.read_bytes()[:1000])


def write_pickle(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1), "path": Path()}, folder / "tiny_encoder.pth")  # runs code when it is read


def add_another(folder: Path) -> None:
    write_taesd(folder, "other", latent_channels=16)


def mix(folder: Path) -> None:
    (folder / "tiny_encoder.pth").unlink()
    add_another(folder)
    (folder / "other_decoder.pth").unlink()
    (folder / "tiny_decoder.pth").rename(folder / "other_decoder.pth")


def shorten(folder: Path) -> None:
    path = folder / "tiny_decoder.pth"
    torch.save(dict(list(torch.load(path, weights_only=True).items())[:5]), path)


BAD_TAESD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda folder: [file.unlink() for file in folder.iterdir()], "needs NAME_encoder.pth there"),
    "half": (lambda folder: (folder / "tiny_decoder.pth").unlink(), "tiny_decoder.pth is missing"),
    "truncated": (truncate, "tiny_decoder.pth is damaged or not a file of weights"),
    "code": (write_pickle, "tiny_encoder.pth is damaged or not a file of weights"),
    "partial": (shorten, "is not a VAE of the taesd family"),
    "mixed": (mix, "is not a VAE of the taesd family"),
    "several": (add_another, "of other, tiny: add #NAME"),
}


@pytest.mark.parametrize("fault", BAD_TAESD)
def test_files_that_are_no_vae_are_one_line(tmp_path: Path, fault: str) -> None:
    write_taesd(tmp_path)
    spoil, said = BAD_TAESD[fault]
    spoil(tmp_path)
    with pytest.raises(UserError) as error:
        load_pretrained(f"taesd:{tmp_path}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_one_of_several_is_chosen_by_its_name(tmp_path: Path) -> None:
    write_taesd(tmp_path)
    add_another(tmp_path)
    assert load_pretrained(f"taesd:{tmp_path}#other")[1].latent_channels == 16
