"""VAEs of other projects, from random weights in their files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub_stand_in import commit_of, hub
from helpers.pretrained_files import KINDS, compvis_state, write_compvis, write_diffusers, write_taesd
from hydra.utils import instantiate
from omegaconf import OmegaConf

from latentfaces.autoencoder import TAESD, VAE, DiffusersVAE, load_pretrained
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


def test_the_last_layer_is_that_of_the_decoder(tmp_path: Path) -> None:
    assert TAESD(4).last_layer.shape == (3, 64, 3, 3)
    pytest.importorskip("diffusers")
    write_diffusers(tmp_path)
    _, vae = load_pretrained(f"diffusers:{tmp_path}")
    assert isinstance(vae, DiffusersVAE)
    assert vae.last_layer is vae.model.decoder.conv_out.weight


@torch.no_grad()
def test_a_compiled_vae_computes_the_same() -> None:
    vae, images = TAESD(4), torch.rand(1, 3, 16, 16)
    expected = vae(images)[0]
    vae.compile(backend="eager")
    torch.testing.assert_close(vae(images)[0], expected)


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
    "half": (lambda folder: (folder / "tiny_decoder.pth").unlink(), "tiny_decoder.pth does not exist"),
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


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nosuch"):
        load_pretrained(f"taesd:{tmp_path / 'nosuch'}#tiny")


def test_one_of_several_is_chosen_by_its_name(tmp_path: Path) -> None:
    write_taesd(tmp_path)
    add_another(tmp_path)
    assert load_pretrained(f"taesd:{tmp_path}#other")[1].latent_channels == 16


def assert_equals(vae: VAE, original: Any) -> None:
    """Encode and decode with both, and compare to 1e-5."""
    images = torch.rand(2, 3, 32, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    posterior, encoded = vae.encode(images), original.encode(images)
    if hasattr(encoded, "latent_dist"):
        torch.testing.assert_close(posterior.mean, encoded.latent_dist.mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(posterior.std, encoded.latent_dist.std, rtol=0, atol=1e-5)
    else:
        torch.testing.assert_close(posterior.mean, encoded.latents, rtol=0, atol=1e-5)
        assert posterior.std.max() < 1e-6
    decoded = original.decode(posterior.mean).sample
    torch.testing.assert_close(vae.decode(posterior.mean), decoded, rtol=0, atol=1e-5)
    assert posterior.mean.shape[1:] == (vae.latent_channels, 32 // vae.downsampling, 24 // vae.downsampling)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_diffusers_and_ours_agree(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("diffusers")
    original = write_diffusers(tmp_path / "vae", kind)
    (tmp_path / "vae" / "README.md").write_text("---\nlicense: openrail++\n---\nA VAE\n")
    config, vae = load_pretrained(f"diffusers:{tmp_path}/vae")
    assert_equals(vae, original)
    rebuilt = build(json.loads(json.dumps(config)))
    rebuilt.load_state_dict(vae.state_dict())
    assert_equals(rebuilt, original)
    instantiated = instantiate(OmegaConf.create(config))
    instantiated.load_state_dict(vae.state_dict())
    assert_equals(instantiated, original)
    assert rebuilt.licence == "openrail++"
    assert len(EncoderFeatures(vae)(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8))) == 2
    assert_equals(load_pretrained(f"diffusers:{tmp_path}#vae")[1], original)  # as a part of a pipeline


@torch.no_grad()
def test_pickled_weights_of_diffusers_are_read_too(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    original = write_diffusers(tmp_path, safe_serialization=False)
    assert_equals(load_pretrained(f"diffusers:{tmp_path}")[1], original)


@pytest.mark.parametrize(("kind", "suffix"), [("sd", "ckpt"), ("sd3", "ckpt"), ("sd", "safetensors")])
@torch.no_grad()
def test_a_checkpoint_of_compvis_is_converted(tmp_path: Path, kind: str, suffix: str) -> None:
    pytest.importorskip("diffusers")
    original = write_compvis(tmp_path / "model.ckpt", kind)
    if suffix == "safetensors":
        from safetensors.torch import save_file

        save_file({name: x.contiguous() for name, x in compvis_state(original).items()}, tmp_path / "model.safetensors")
    config, vae = load_pretrained(f"ldm:{tmp_path}/model.{suffix}")
    assert_equals(vae, original)
    rebuilt = build(config)
    rebuilt.load_state_dict(vae.state_dict())
    assert_equals(rebuilt, original)


@torch.no_grad()
def test_taesd_and_the_same_network_of_diffusers_agree(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    original = write_diffusers(tmp_path, "tiny")
    vae = TAESD(16)
    for half, shift in (("encoder", 0), ("decoder", 1)):  # the layers of diffusers lack the clamp
        state = getattr(original, half).layers.state_dict()
        parts = ((int(name.partition(".")[0]) + shift, name.partition(".")[2], value) for name, value in state.items())
        getattr(vae, half).load_state_dict({f"{layer}.{name}": value for layer, name, value in parts})
    assert_equals(vae, original)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    state.pop("encoder.conv_in.weight")
    save_file(state, folder / "diffusion_pytorch_model.safetensors")


WEIGHTS = "diffusion_pytorch_model.safetensors"
BAD_DIFFUSERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no_config": (lambda folder: (folder / "config.json").unlink(), "is not a VAE of diffusers"),
    "no_weights": (lambda folder: (folder / WEIGHTS).unlink(), "is not a VAE of diffusers"),
    "truncated": (lambda folder: cut(folder / WEIGHTS), "is not a VAE of diffusers, is damaged"),
    "partial": (drop_a_weight, "encoder.conv_in.weight is not in both"),
    "unet": (lambda folder: edit_config(folder, _class_name="UNet2DModel"), "UNet2DModel is no VAE that can be used"),
    "other_size": (lambda folder: edit_config(folder, latent_channels=8), "is not a VAE of diffusers"),
    "code": (
        lambda folder: edit_config(folder, scaling_factor={"_target_": "os.getcwd"}),
        "has nested values in its config.json",
    ),
    "secret": (lambda folder: edit_config(folder, act_fn="${oc.env:HOME}"), "diffusers"),
}


@pytest.mark.parametrize("fault", BAD_DIFFUSERS)
def test_folders_that_are_no_vae_of_diffusers_are_one_line(tmp_path: Path, fault: str) -> None:
    pytest.importorskip("diffusers")
    write_diffusers(tmp_path)
    spoil, said = BAD_DIFFUSERS[fault]
    spoil(tmp_path)
    with pytest.raises(UserError) as error:
        load_pretrained(f"diffusers:{tmp_path}")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("sd", {"in_channels": 1}), ("sd", {"out_channels": 4}), ("tiny", {"upsampling_scaling_factor": 1})],
)
def test_a_vae_of_other_images_is_one_line(tmp_path: Path, kind: str, changes: dict[str, int]) -> None:
    diffusers = pytest.importorskip("diffusers")
    name, config = KINDS[kind]
    getattr(diffusers, name)(**config, **changes).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not map RGB images to RGB images of the same size"):
        load_pretrained(f"diffusers:{tmp_path}")


def test_an_id_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"diffusers:nobody/nothing@v1#vae is not a VAE .* or cannot be downloaded"):
        load_pretrained("diffusers:nobody/nothing@v1#vae")


def test_a_vae_of_the_hub_is_downloaded_at_its_revision(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    new = write_diffusers(tmp_path / "main" / "vae", "sd")
    write_diffusers(tmp_path / "v1" / "vae", "tiny")
    for revision in ("main", "v1"):
        (tmp_path / revision / "README.md").write_text("---\nlicense: openrail\n---\n")
    script = (
        "import torch; from latentfaces.autoencoder import load_pretrained\n"
        "for name in ('faces/vae#vae', 'faces/vae@v1#vae'):\n"
        "    config, vae = load_pretrained(f'diffusers:{name}')\n"
        "    print(config['kind'], vae.licence, vae.source, sep='|')\n"
        "    torch.save(vae.state_dict(), f'{vae.source[-40:]}.pt')\n"
    )
    with hub({revision: tmp_path / revision for revision in ("main", "v1")}) as address:
        env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.stdout.splitlines() == [
        f"AutoencoderKL|openrail|diffusers:faces/vae#vae at {commit_of('main')}",
        f"AutoencoderTiny|openrail|diffusers:faces/vae@v1#vae at {commit_of('v1')}",
    ], ran.stderr
    weights = torch.load(tmp_path / f"{commit_of('main')}.pt", weights_only=True)
    assert torch.equal(weights["model.encoder.conv_in.weight"], new.encoder.conv_in.weight)


def test_checkpoints_without_such_a_vae_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    path = tmp_path / "model.ckpt"
    state = compvis_state(write_diffusers(tmp_path / "vae"))
    with_attention = state | {"first_stage_model.encoder.down.2.attn.0.q.weight": torch.zeros(64, 64, 1, 1)}
    for content, said in (
        ({"state_dict": {"model.out.weight": torch.zeros(1)}}, "has no first_stage_model"),
        ({"state_dict": with_attention}, "is not an AutoencoderKL of the usual layout"),
        ({"state_dict": dict(list(state.items())[:100])}, "ldm:"),
        ({"state_dict": {"config": Path()}}, "is damaged or not a file of weights"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError, match=said) as error:
            load_pretrained(f"ldm:{path}")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["diffusers:somewhere", "ldm:model.ckpt"])
def test_without_diffusers_the_command_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install 'latentfaces\[diffusers\]'"):
        load_pretrained(name)


def test_a_stored_config_cannot_name_other_classes() -> None:
    with pytest.raises(UserError, match="UNet2DModel is no VAE"):
        build(
            {
                "_target_": "latentfaces.autoencoder.DiffusersVAE",
                "kind": "UNet2DModel",
                "latent_channels": 4,
                "downsampling": 8,
            }
        )
