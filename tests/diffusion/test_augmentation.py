"""Augmentation of latents and its label."""

import math

import pytest
import torch
from torch import Tensor

from latentfaces.diffusion import Augmentation
from latentfaces.diffusion.augmentation import rotation


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
    x = torch.linspace(-1, 1, 33).expand(1, 1, 33, 33)
    changed, label = Augmentation(0.5)(torch.cat([x, x.mT], dim=1))
    scale = 2 ** label[0, 1].item()
    assert abs(label[0, 1].item()) > 0.01
    assert label[0, [0, 2, 3, 4, 5, 6, 7]].abs().sum() == 0
    across, down = changed[0, 0, 16, 20] - changed[0, 0, 16, 12], changed[0, 1, 20, 16] - changed[0, 1, 12, 16]
    assert [across.item(), down.item()] == pytest.approx([0.5 / scale, 0.5 / scale], rel=1e-3)  # 8 of 32 pixels


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
    x0 = torch.randn(1, 1, 8, 8)
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.full(size, 2.0))
    changed, label = Augmentation(0.5)(x0)
    assert label.tolist() == [[0.0] * 6 + [0.25, 0.25]]  # a quarter of the side: 2 of 8
    assert torch.allclose(changed[..., :6, :6], x0[..., 2:, 2:], atol=1e-5)


def test_stretch_is_along_the_axis_of_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, 3)
    torch.manual_seed(0)
    position = torch.linspace(-1, 1, 65)
    grid = torch.stack(torch.meshgrid(position, position, indexing="xy"))  # x, y
    blob = torch.exp(-grid.square().sum(0) / (2 * 0.2**2)).expand(6, 1, -1, -1)
    changed, label = Augmentation(0.5)(blob)
    amount, angle = label[:, 4:6].norm(dim=1), torch.atan2(label[:, 5], label[:, 4]) / 2
    assert (amount > 0.01).all()
    moments = torch.einsum("bhw,ihw,jhw->bij", changed[:, 0], grid, grid)
    covariance = moments / changed.sum((1, 2, 3))[:, None, None]
    for turn, factor in ((0.0, 2**amount), (math.pi / 2, 2**-amount)):
        axis = torch.stack([(angle + turn).cos(), (angle + turn).sin()], dim=1)
        std = torch.einsum("bi,bij,bj->b", axis, covariance, axis).sqrt()
        assert torch.allclose(std / 0.2, factor, rtol=0.02)


def test_parameters_have_the_distributions_of_karras_et_al() -> None:
    torch.manual_seed(0)
    _, label = Augmentation(1.0)(torch.zeros(20_000, 1, 2, 2))
    scale, stretch = label[:, 1], label[:, 4:6].norm(dim=1)
    assert scale.std().item() == pytest.approx(0.2, rel=0.03)
    assert stretch.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.03)
    assert label[:, 6:].std(0).tolist() == pytest.approx([0.125, 0.125], rel=0.03)
    for sin, cos in ((label[:, 3], label[:, 2] + 1), (label[:, 5], label[:, 4])):  # uniform over the circle
        angle = torch.atan2(sin, cos)
        assert angle.histc(8, -math.pi, math.pi).tolist() == pytest.approx([2500] * 8, rel=0.1)
    independent = torch.corrcoef(torch.stack([scale.abs(), stretch, *label[:, 6:].abs().T]))
    assert (independent - torch.eye(4)).abs().max() < 0.05


def test_what_comes_from_beyond_the_edge_is_reflected() -> None:
    torch.manual_seed(0)
    changed, _ = Augmentation(1.0)(torch.ones(20, 1, 8, 8))
    assert torch.allclose(changed, torch.ones(20, 1, 8, 8), atol=1e-5)


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
