"""The quick distance: zero for the same kind of pictures, and growing with how unlike they are."""

import math

import pytest
import torch

from latentfaces.autoencoder import VAE
from latentfaces.evaluation import EncoderDistance, kernel_distance


def test_kernel_distance_of_points_by_hand() -> None:
    # One dimension: k(a, b) = (a b + 1)^3; within {0, 2}: 1; within {1, 1}: 8; across: 1, 1, 27, 27.
    real, fake = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])
    assert kernel_distance(real, fake) == pytest.approx(1 + 8 - 2 * 14)


def test_kernel_distance_is_unbiased_between_samples_of_one_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    values = [
        kernel_distance(torch.randn(50, 4, generator=generator), torch.randn(40, 4, generator=generator))
        for _ in range(300)
    ]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    assert abs(mean) < 4 * deviation / math.sqrt(len(values))
    assert min(values) < 0


def test_distance_grows_as_pictures_leave_the_real_ones() -> None:
    torch.manual_seed(0)
    vae = VAE(2, channels=8, multipliers=(1, 2), num_blocks=1, attention=False).eval()
    base = torch.rand(192, 3, 1, 1) - 0.5 + 0.1 * torch.randn(192, 3, 16, 16)
    distance = EncoderDistance(vae, base[:96])
    values = [distance(base[96:] + noise * torch.randn(96, 3, 16, 16)) for noise in (0.0, 0.1, 0.3)]
    assert abs(values[0]) < 0.2 * values[1]
    assert values[0] < values[1] < values[2]


def test_distance_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    vae = VAE(2, channels=8, multipliers=(1, 2), num_blocks=1, attention=False).eval()
    images = torch.randn(70, 3, 16, 16).clamp(-1, 1)
    distance = EncoderDistance(vae, images)
    assert torch.allclose(distance.features(images)[64:], distance.features(images[64:]), atol=1e-5)
