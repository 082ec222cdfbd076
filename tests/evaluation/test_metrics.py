"""PSNR and SSIM where the answer is known."""

import math

import pytest
import torch
from torch import Tensor

from latentfaces.evaluation import calculate_metrics
from latentfaces.evaluation.features import INCEPTION


@pytest.fixture
def images() -> Tensor:
    """Return images in [-0.5, 0.5], so that an offset clips nothing."""
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)) - 0.5


@pytest.mark.parametrize(("offset", "decibels"), [(0.2, 20.0), (0.02, 40.0), (0.5, 10 * math.log10(16))])
def test_psnr_of_a_constant_offset_is_known(images: Tensor, offset: float, decibels: float) -> None:
    # The range is 2, so PSNR = 10 log10(2^2 / offset^2).
    assert calculate_metrics(images, images + offset)["psnr"] == pytest.approx(decibels, abs=1e-3)


def test_psnr_is_the_mean_of_each_images_own(images: Tensor) -> None:
    offsets = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    assert calculate_metrics(images, images + offsets)["psnr"] == pytest.approx(30.0, abs=1e-3)


def test_equal_images_have_infinite_psnr_and_a_similarity_of_one(images: Tensor) -> None:
    metrics = calculate_metrics(images, images.clone())
    assert metrics["psnr"] > 100
    assert metrics["ssim"] == pytest.approx(1.0, abs=1e-6)


def test_similarity_of_constant_images_is_known() -> None:
    # In [0, 1] they are 0.02 and 0.01. With equal variances SSIM is (2 a b + 0.01^2) / (a^2 + b^2 + 0.01^2).
    images = torch.full((1, 3, 16, 16), -0.96)
    assert calculate_metrics(images, images - 0.02)["ssim"] == pytest.approx(5 / 6, abs=1e-3)


def test_similarity_falls_with_noise(images: Tensor) -> None:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    little, much = (calculate_metrics(images, images + scale * noise)["ssim"] for scale in (0.05, 0.3))
    assert 1 > little > much > 0


def test_metrics_are_plain_numbers(images: Tensor) -> None:
    metrics = calculate_metrics(images, images + 0.1)
    assert {name: type(value) for name, value in metrics.items()} == {"psnr": float, "ssim": float}


def test_metrics_of_a_bfloat16_training_are_computed_in_float32() -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    reconstructions = (images + 0.1).clamp(-1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = calculate_metrics(images, reconstructions)
    assert inside == calculate_metrics(images, reconstructions)


class Colours:
    """Features that are each picture's mean colours."""

    key = "colours"

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3)) / 255


def test_sets_of_new_faces_are_compared_without_pairs() -> None:
    photos, faces = torch.rand(2, 80, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same = calculate_metrics(photos, faces[:60], features=Colours(), paired=False)
    assert set(same) == {"frechet_distance", "kernel_distance", "precision", "recall"}
    brighter = calculate_metrics(photos, (faces + 0.2).clamp(max=1), features=Colours(), paired=False)
    assert brighter["frechet_distance"] > 10 * same["frechet_distance"]
    assert brighter["precision"] < 0.1 < 0.5 < same["precision"]


def test_reconstructions_can_be_compared_as_pairs_and_as_a_set(images: Tensor) -> None:
    values = calculate_metrics(images, images + 0.2, features=Colours(), perceptual=lambda a, b: (a - b).abs().mean())
    assert values["psnr"] == pytest.approx(20, abs=1e-3)
    assert values["lpips"] == pytest.approx(0.2, abs=1e-5)
    assert values["frechet_distance"] == pytest.approx(3 * 0.1**2, rel=0.05)  # pixels are rounded to 255 levels


def test_only_inceptions_frechet_distance_is_called_fid(images: Tensor) -> None:
    look = Colours()
    for key in ("colours", "inception-abc"):  # the second is of a file with that name, see `saved_network`
        look.key = key
        assert "fid" not in calculate_metrics(images, images, features=look)
    look.key = f"{INCEPTION}-abc"
    values = calculate_metrics(images, images, features=look)
    assert "fid" in values
    assert "frechet_distance" not in values


def test_new_faces_without_features_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="features"):
        calculate_metrics(images, images, paired=False)
