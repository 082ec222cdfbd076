"""Augmentation of latents and its label."""

import math

import pytest
import torch
from torch import Tensor

from latentfaces.diffusion import Augmentation
from latentfaces.diffusion.augmentation import rotation, scaling


def smooth_latents(n: int, size: int = 16) -> Tensor:
    """Latents that vary slowly, so that bilinear sampling follows them."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    waves = torch.stack([torch.sin(1.5 * x + 0.3), torch.cos(1.2 * y - 0.5), x * y])
    return waves.expand(n, -1, -1, -1).clone()


def only(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the augmentation do only its transform `number`, always."""
    real = torch.rand

    def rand(*size: int, **options: object) -> Tensor:
        if size[0] != 5:
            return real(*size, **options)  # type: ignore[call-overload, no-any-return]
        drawn = torch.ones(*size)
        drawn[number] = 0.0
        return drawn

    monkeypatch.setattr(torch, "rand", rand)


def test_rarely_chosen_samples_stay_as_they_are_to_the_bit_with_label_zero() -> None:
    torch.manual_seed(0)
    x0 = torch.randn(400, 4, 8, 8)
    changed, label = Augmentation(0.1)(x0)
    untouched = (label == 0).all(1)
    assert untouched.float().mean().item() == pytest.approx(0.9**5, abs=0.08)
    assert torch.equal(changed[untouched], x0[untouched])
    assert not any(torch.equal(a, b) for a, b in zip(changed[~untouched], x0[~untouched], strict=True))


def test_upside_down_is_a_flip_and_label_one(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 0)
    x0 = torch.randn(3, 2, 8, 8)
    changed, label = Augmentation(0.5)(x0)
    assert torch.allclose(changed, x0.flip(2), atol=1e-5)
    assert label.tolist() == [[1.0] + [0.0] * 7] * 3


def test_scale_shows_the_middle_larger_by_what_the_label_says(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 1)
    torch.manual_seed(1)
    size = 33
    x = torch.linspace(-1, 1, size).expand(1, 1, size, size).clone()
    changed, label = Augmentation(0.5)(x)
    scale = 2 ** label[0, 1].item()
    assert abs(label[0, 1].item()) > 0.01
    assert label[0, [0, 2, 3, 4, 5, 6, 7]].abs().sum() == 0
    slope = (changed[0, 0, 16, 20] - changed[0, 0, 16, 12]) / (x[0, 0, 16, 20] - x[0, 0, 16, 12])
    assert slope.item() == pytest.approx(1 / scale, rel=1e-3)


def test_turn_is_by_the_angle_of_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 2)
    torch.manual_seed(0)
    x0 = smooth_latents(8, 33)
    changed, label = Augmentation(0.5)(x0)
    cos, sin = label[:, 2] + 1, label[:, 3]
    assert torch.allclose(cos.square() + sin.square(), torch.ones(8), atol=1e-6)
    # A point off the middle shows what lay at the point turned by the angle.
    x, y = 6 / 16.5, -4 / 16.5
    seen = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=1)[:, None, None]
    expected = torch.nn.functional.grid_sample(x0, seen, align_corners=False)[..., 0, 0]
    assert torch.allclose(changed[:, :, 16 - 4, 16 + 6], expected, atol=1e-2)


def test_shift_moves_by_a_share_of_the_side(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 4)
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.full(size, 2.0))
    x0 = torch.randn(1, 1, 8, 8)
    changed, label = Augmentation(0.5)(x0)
    assert label.tolist() == [[0.0] * 6 + [0.25, 0.25]]  # a quarter of the side: 2 of 8
    assert torch.allclose(changed[..., :6, :6], x0[..., 2:, 2:], atol=1e-5)


def test_stretch_keeps_areas(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 3)
    torch.manual_seed(0)
    _, label = Augmentation(0.5)(torch.randn(5, 1, 8, 8))
    amount = label[:, 4:6].norm(dim=1)
    matrix = scaling(2**-amount, 2**amount)
    assert torch.allclose(torch.linalg.det(matrix), torch.ones(5), atol=1e-6)
    assert (amount > 0).all()


def test_bfloat16_autocast_changes_nothing() -> None:
    latents, made = smooth_latents(8), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            made.append(Augmentation(0.9)(latents))
    assert torch.equal(made[0][0], made[1][0])
    assert torch.equal(made[0][1], made[1][1])


def test_rotation_is_counter_clockwise() -> None:
    quarter = rotation(torch.tensor([math.pi / 2]))[0]
    assert torch.allclose(quarter @ torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), atol=1e-6)


def test_label_has_the_width_it_announces() -> None:
    _, label = Augmentation(1.0)(torch.randn(2, 4, 8, 8))
    assert label.shape == (2, Augmentation.label_channels)


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1])
def test_impossible_probabilities_are_refused(probability: float) -> None:
    with pytest.raises(ValueError, match=f"probability={probability}"):
        Augmentation(probability)
