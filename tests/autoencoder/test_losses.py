"""The objective of stage 1 by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.autoencoder import DiagonalGaussian, VAELoss


def posterior_of_one(batch: int, channels: int, side: int) -> DiagonalGaussian:
    """Return a posterior with mean 1 and variance 1: half a nat per value."""
    mean = torch.ones(batch, channels, side, side)
    return DiagonalGaussian(mean, torch.zeros_like(mean))


def enlarge(latents: Tensor) -> Tensor:
    """Decode by repeating each value in a two by two square."""
    return F.interpolate(latents, scale_factor=2.0, mode="nearest")


class Brighter(nn.Module):
    """A stand-in for a perceptual distance: by how much the second picture is brighter."""

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return (reconstructions - images).mean()


@pytest.mark.parametrize(("name", "expected"), [("l1", 0.375), ("mse", 0.1875)])
def test_distortion_is_the_one_computed_by_hand(name: Any, expected: float) -> None:
    images = torch.zeros(2, 3, 8, 8)
    reconstructions = torch.full_like(images, 0.5)
    reconstructions[0, :, :4] = 0.0  # one quarter of all values is right, three quarters are 0.5 off
    total, terms = VAELoss(name).distortion(images, reconstructions)
    assert terms.keys() == {"reconstruction"}
    assert total.item() == terms["reconstruction"].item() == pytest.approx(expected)


def test_perceptual_distance_enters_the_total_with_its_weight_and_the_terms_without() -> None:
    loss = VAELoss("mse", perceptual=Brighter(), perceptual_weight=3.0)  # type: ignore[arg-type]
    total, terms = loss.distortion(torch.full((2, 3, 4, 4), 0.5), torch.full((2, 3, 4, 4), 0.75))
    assert {name: term.item() for name, term in terms.items()} == {"reconstruction": 0.0625, "perceptual": 0.25}
    assert total.item() == 0.0625 + 3 * 0.25


@pytest.mark.parametrize(("reduction", "values"), [("image", 3 * 8 * 8), ("latent", 4 * 2 * 2), ("sum", 1)])
def test_rate_is_the_kl_divided_by_the_values_of_the_image_of_the_latent_or_by_nothing(
    reduction: Any, values: int
) -> None:
    nats = 0.5 * 4 * 2 * 2
    total, kl = VAELoss(kl_reduction=reduction).rate(posterior_of_one(2, 4, 2), torch.zeros(2, 3, 8, 8))
    assert total.item() == kl.item() == pytest.approx(nats / values)


def test_rate_is_the_mean_over_samples() -> None:
    mean = torch.stack([torch.zeros(4, 2, 2), torch.full((4, 2, 2), 2.0)])
    rate = VAELoss().rate(DiagonalGaussian(mean, torch.zeros_like(mean)), torch.zeros(2, 3, 8, 8))
    assert rate.kl.item() == pytest.approx((0 + 0.5 * 4 * 16) / 2 / 192)


@pytest.mark.parametrize(("reduction", "values"), [("image", 3 * 8 * 8), ("latent", 4 * 2 * 2), ("sum", 1)])
def test_only_the_nats_above_the_target_are_charged(reduction: Any, values: int) -> None:
    loss = VAELoss(kl_reduction=reduction, kl_target=0.125)
    total, kl = loss.rate(posterior_of_one(2, 4, 2), torch.zeros(2, 3, 8, 8))
    assert total.item() == pytest.approx((0.5 - 0.125) * 4 * 2 * 2 / values)
    assert kl.item() == pytest.approx(0.5 * 4 * 2 * 2 / values)


@pytest.mark.parametrize(("target", "slope"), [(0.75, 0.0), (0.25, 1.0)])
def test_target_takes_the_gradient_away_below_it_and_leaves_it_above(target: float, slope: float) -> None:
    mean = torch.ones(1, 4, 2, 2, requires_grad=True)
    logvar = torch.full((1, 4, 2, 2), 0.1, requires_grad=True)  # about half a nat per value
    loss = VAELoss(kl_reduction="sum", kl_target=target)
    loss.rate(DiagonalGaussian(mean, logvar), torch.zeros(1, 3, 8, 8)).total.backward()
    assert mean.grad is not None
    assert logvar.grad is not None
    # Of (mean^2 + exp(logvar) - 1 - logvar) / 2: mean, and (exp(logvar) - 1) / 2.
    assert torch.allclose(mean.grad, slope * torch.ones_like(mean))
    assert torch.allclose(logvar.grad, slope * 0.5 * (logvar.exp() - 1))


def test_target_is_of_the_whole_batch_so_that_a_rich_photo_may_use_what_a_plain_one_leaves() -> None:
    mean = torch.stack([torch.zeros(4, 2, 2), torch.full((4, 2, 2), 2.0)])  # 0 and 2 nats per value, 1 on average
    posterior = DiagonalGaussian(mean, torch.zeros_like(mean))
    totals = [
        VAELoss(kl_reduction="latent", kl_target=target).rate(posterior, torch.zeros(2, 3, 8, 8)).total.item()
        for target in (0.75, 1.25)
    ]
    assert totals == pytest.approx([0.25, 0.0])


def test_both_terms_mean_the_same_at_twice_the_resolution() -> None:
    loss = VAELoss()
    torch.manual_seed(0)
    images, reconstructions = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    large, large_reconstructions = images.tile(1, 1, 2, 2), reconstructions.tile(1, 1, 2, 2)
    distortions = [
        loss.distortion(*pair).total.item() for pair in ((images, reconstructions), (large, large_reconstructions))
    ]
    rates = [loss.rate(posterior_of_one(2, 4, side), photos).total.item() for side, photos in ((2, images), (4, large))]
    assert distortions[0] == pytest.approx(distortions[1])
    assert rates[0] == pytest.approx(rates[1])


def test_decoder_that_scales_with_its_latents_has_no_equivariance_error() -> None:
    torch.manual_seed(0)
    coarse = torch.randn(2, 3, 2, 2)
    latents = enlarge(coarse)  # nothing is in their upper frequencies
    assert VAELoss().equivariance(enlarge(latents), latents, enlarge).item() == 0.0


def test_half_size_images_and_latents_are_means_of_squares() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert VAELoss().equivariance(images, images, lambda latents: latents).item() == 0.0


@pytest.mark.parametrize(("name", "expected"), [("l1", 1.0), ("mse", 1.25)])
def test_equivariance_error_of_detail_in_the_latents_is_the_one_computed_by_hand(name: Any, expected: float) -> None:
    latents = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(2, 3, 2, 2)
    # Half the latents is 1.5, decoded to 1.5 everywhere; half the image is the latents, off by 1.5, 0.5, 0.5 and 1.5.
    assert VAELoss(name).equivariance(enlarge(latents), latents, enlarge).item() == pytest.approx(expected)


def test_equivariance_error_is_large_where_the_detail_hides_in_a_checkerboard() -> None:
    sign = torch.ones(4, 4)
    sign[::2, 1::2] = sign[1::2, ::2] = -1.0
    images = torch.full((1, 3, 4, 4), 0.75)
    # The decoder multiplies by the same pattern, so that at full size every picture comes back, and at half none.
    latents = images * sign
    assert torch.equal(latents * sign, images)
    error = VAELoss().equivariance(images, latents, lambda z: z * sign[: z.shape[-2], : z.shape[-1]])
    assert error.item() == pytest.approx(0.75)


def test_gradient_of_the_equivariance_error_reaches_latents_and_decoder() -> None:
    torch.manual_seed(0)
    latents, decode = torch.randn(1, 3, 4, 4, requires_grad=True), nn.Conv2d(3, 3, 1)
    VAELoss("mse").equivariance(torch.randn(1, 3, 4, 4), latents, decode).backward()
    assert latents.grad is not None
    assert latents.grad.abs().min() > 0
    assert decode.weight.grad is not None
    assert decode.weight.grad.abs().min() > 0
