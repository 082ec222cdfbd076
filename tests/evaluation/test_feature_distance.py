"""FeatureDistance: about 0 for images of the same kind, and larger the more they differ."""

import pytest
import torch

from latentfaces.autoencoder import VAE
from latentfaces.data.images import to_uint8
from latentfaces.errors import UserError
from latentfaces.evaluation import FeatureDistance
from latentfaces.evaluation.features import EncoderFeatures


def test_distance_grows_with_noise_in_the_images() -> None:
    torch.manual_seed(0)
    vae = VAE(2, channels=8, multipliers=(1, 2), num_blocks=1, attention=False).eval()
    base = torch.rand(192, 3, 1, 1) - 0.5 + 0.1 * torch.randn(192, 3, 16, 16)
    distance = FeatureDistance(EncoderFeatures(vae), to_uint8(base[:96]))
    values = [distance(to_uint8(base[96:] + noise * torch.randn(96, 3, 16, 16))) for noise in (0.0, 0.1, 0.3)]
    assert abs(values[0]) < 0.2 * values[1]
    assert values[0] < values[1] < values[2]


def test_distance_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    vae = VAE(2, channels=8, multipliers=(1, 2), num_blocks=1, attention=False).eval()
    images = to_uint8(torch.randn(70, 3, 16, 16))
    distance = FeatureDistance(EncoderFeatures(vae), images)
    assert torch.allclose(distance.extract(images)[64:], distance.extract(images[64:]), atol=1e-5)


class Raw:
    """Features that are the images' own values, the first constant on the real images."""

    key = "raw"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 0].float()


def test_constant_and_outlying_features_do_not_decide_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, 130, (200, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[:, :, :, 0] = 7
    real, fake = images[:100], images[100:].clone()
    fake[0, :, :, 0] = 8  # constant on the real images: a std clamped at 1e-6 would give z = 1e6
    distance = FeatureDistance(Raw(), real)  # type: ignore[arg-type]
    assert abs(distance(fake)) < 1
    fake[:, :, :, 1] = 255
    assert 1 < distance(fake) < 11**3


def test_constant_features_do_not_count_even_if_most_are() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.full((200, 3, 16, 16), 7, dtype=torch.uint8)
    images[:, :, :, 0] = torch.randint(100, 130, (200, 3, 16), generator=generator, dtype=torch.uint8)
    distance = FeatureDistance(Raw(), images[:100])  # type: ignore[arg-type]
    same = distance(images[100:])
    images[100:, :, :, 1:] = 8
    assert distance(images[100:]) == same
    assert abs(same) < 1


def test_distance_does_not_depend_on_the_unit_of_the_features() -> None:
    class Small(Raw):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return 1e-5 * super().__call__(images)

    images = torch.randint(100, 130, (100, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    small, raw = (FeatureDistance(look, images[:50])(images[50:]) for look in (Small(), Raw()))  # type: ignore[arg-type]
    assert small == pytest.approx(raw, rel=1e-3)


def test_real_images_that_do_not_vary_are_an_error() -> None:
    with pytest.raises(UserError, match=r"2 held-out image\(s\) do not vary"):
        FeatureDistance(Raw(), torch.full((2, 3, 16, 16), 7, dtype=torch.uint8))  # type: ignore[arg-type]


def test_equal_and_mirrored_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(100, 130, (400, 3, 16, 16), generator=generator, dtype=torch.uint8)
    distance = FeatureDistance(Raw(), images[:200])  # type: ignore[arg-type]
    other = distance(images[200:])
    assert abs(other) < 1
    # Pairs of equal images count across the sets and not within one, so the unbiased estimate is below 0.
    assert -2 < distance(images[:200]) < other
    assert abs(distance(images[:200].flip(-1))) < 1  # columns are independent: mirroring changes no distribution
    slope = torch.arange(16, dtype=torch.uint8)
    tilted = FeatureDistance(Raw(), images[:200] + slope)  # type: ignore[arg-type]
    assert tilted(images[200:] + slope) < 1 < tilted((images[200:] + slope).flip(-1))
