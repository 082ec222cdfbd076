"""The objective of stage 1 by hand."""

import pytest
import torch

from latentfaces.autoencoder import DiagonalGaussian, VAELoss


def posterior_of_one(batch: int, channels: int, side: int) -> DiagonalGaussian:
    """Return a posterior with mean 1 and variance 1: half a nat per value."""
    mean = torch.ones(batch, channels, side, side)
    return DiagonalGaussian(mean, torch.zeros_like(mean))


@pytest.mark.parametrize(("name", "expected"), [("l1", 0.375), ("mse", 0.1875)])
def test_terms_and_total_are_those_computed_by_hand(name: str, expected: float) -> None:
    images = torch.zeros(2, 3, 8, 8)
    reconstructions = torch.full_like(images, 0.5)
    reconstructions[0, :, :4] = 0.0  # one quarter of all values is right, three quarters are 0.5 off
    terms = VAELoss(name)(images, reconstructions, posterior_of_one(2, 4, 2), kl_weight=0.3)  # type: ignore[arg-type]
    kl = 0.5 * 4 * 2 * 2 / (3 * 8 * 8)
    assert terms.reconstruction.item() == pytest.approx(expected)
    assert terms.kl.item() == pytest.approx(kl)
    assert terms.total.item() == pytest.approx(expected + 0.3 * kl)


def test_kl_is_the_mean_over_samples() -> None:
    mean = torch.stack([torch.zeros(4, 2, 2), torch.full((4, 2, 2), 2.0)])
    images = torch.zeros(2, 3, 8, 8)
    terms = VAELoss()(images, images, DiagonalGaussian(mean, torch.zeros_like(mean)), kl_weight=1.0)
    assert terms.kl.item() == pytest.approx((0 + 0.5 * 4 * 16) / 2 / 192)


def test_weight_means_the_same_at_twice_the_resolution() -> None:
    loss = VAELoss()
    images = torch.rand(2, 3, 8, 8)
    reconstructions = torch.rand(2, 3, 8, 8)
    small = loss(images, reconstructions, posterior_of_one(2, 4, 2), kl_weight=0.7)
    tiled = (images.tile(1, 1, 2, 2), reconstructions.tile(1, 1, 2, 2), posterior_of_one(2, 4, 4))
    large = loss(*tiled, kl_weight=0.7)
    assert [term.item() for term in large] == pytest.approx([term.item() for term in small])


def test_no_weight_leaves_the_kl_out_of_the_total_but_not_out_of_the_log() -> None:
    images = torch.zeros(1, 3, 4, 4)
    terms = VAELoss()(images, images, posterior_of_one(1, 4, 1), kl_weight=0.0)
    assert terms.total.item() == 0.0
    assert terms.kl.item() == pytest.approx(2 / 48)


def test_unknown_distance_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match="reconstruction='l3' is not one of l1, mse"):
        VAELoss("l3")  # type: ignore[arg-type]
