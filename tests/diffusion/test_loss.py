"""The objective of stage 2 on data N(0, s^2), where the best denoiser and its loss have closed forms.

x_t = (1 - t) x0 + t eps has variance D(t) = (1 - t)^2 s^2 + t^2; the best velocity is x (t - (1 - t) s^2) / D, and what
no denoiser can know is the conditional variance s^2 / D.
"""

import pytest
import torch
from torch import Tensor, nn

from latentfaces.diffusion import Denoiser, DenoisingLoss, LogitNormalTime, RectifiedFlow, TimeSampler, UniformTime

S = 0.6


def share(t: Tensor) -> Tensor:
    """The best velocity at t over x."""
    return (t - (1 - t) * S**2) / variance(t)


def variance(t: Tensor) -> Tensor:
    """D(t)."""
    return (1 - t) ** 2 * S**2 + t**2


class GaussianNetwork(nn.Module):
    """The best velocity times `factor`."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.factor * share(t)[:, None, None, None] * x_t


def losses(factor: float, t: Tensor) -> Tensor:
    """Loss per sample of the denoiser `factor` times the best, on the same data and noise whatever the factor."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, len(t), 1, 4, 4, generator=generator)
    return DenoisingLoss(UniformTime())(Denoiser(GaussianNetwork(factor), RectifiedFlow()), S * x0, t, noise)


@pytest.mark.parametrize("time", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_ideal_denoisers_loss_is_the_conditional_variance(time: float) -> None:
    t = torch.full((20_000,), time)
    loss = losses(1.0, t)
    standard_error = loss.std().item() / len(loss) ** 0.5
    assert loss.mean().item() == pytest.approx(S**2 / variance(t[:1]).item(), abs=4 * standard_error)


@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.8, 1.2, 2.0])
def test_scaled_ideal_denoiser_loses_by_what_it_is_scaled(factor: float) -> None:
    t = torch.linspace(0.01, 0.99, 20_000)
    excess = losses(factor, t) - losses(1.0, t)
    expected = ((factor - 1) ** 2 * share(t).square() * variance(t)).mean().item()
    standard_error = excess.std().item() / len(t) ** 0.5
    assert excess.mean().item() > 5 * standard_error
    assert excess.mean().item() == pytest.approx(expected, abs=4 * standard_error)


def test_loss_is_one_mean_square_per_sample() -> None:
    x0, noise = torch.ones(3, 1, 2, 2), torch.full((3, 1, 2, 2), 3.0)
    noise[1] = 1.0
    noise[2, 0, 0, 0] = 1.0  # three of four values are 2 off
    silent = Denoiser(GaussianNetwork(0.0), RectifiedFlow())
    assert DenoisingLoss(UniformTime())(silent, x0, torch.rand(3), noise).tolist() == [4.0, 0.0, 3.0]


def test_times_and_noise_are_drawn_where_they_are_not_given() -> None:
    denoiser, loss = Denoiser(GaussianNetwork(), RectifiedFlow()), DenoisingLoss(LogitNormalTime())
    x0 = S * torch.randn(8, 1, 2, 2)
    torch.manual_seed(0)
    first, other = loss(denoiser, x0), loss(denoiser, x0)
    torch.manual_seed(0)
    assert first.shape == (8,)
    assert torch.equal(first, loss(denoiser, x0))
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.7), (1.2, 2.0)])
def test_logit_normal_has_the_analytic_quantiles(mean: float, std: float) -> None:
    sampler = LogitNormalTime(mean, std)
    u = torch.tensor([0.001, 0.1, 0.5, 0.75, 0.999], dtype=torch.float64)
    expected = torch.sigmoid(torch.distributions.Normal(mean, std).icdf(u))
    assert torch.allclose(sampler.from_uniform(u), expected, atol=1e-6)
    one_sigma = torch.tensor([0.15865525393145707, 0.5, 0.8413447460685429], dtype=torch.float64)
    logits = torch.logit(sampler.from_uniform(one_sigma)).tolist()
    assert logits == pytest.approx([mean - std, mean, mean + std])


def test_logit_normal_of_mean_zero_is_symmetric_about_one_half() -> None:
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    t = LogitNormalTime(0.0, 1.3).from_uniform(u)
    assert torch.allclose(t + t.flip(0), torch.ones_like(t), atol=1e-12)


def test_higher_mean_asks_more_of_noisy_times() -> None:
    u = torch.linspace(0.01, 0.99, 99)
    assert (LogitNormalTime(1.0).from_uniform(u) > LogitNormalTime(0.0).from_uniform(u)).all()


def test_a_batch_takes_one_time_from_each_slice() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        assert (16 * UniformTime()(16)).floor().tolist() == list(range(16))


def test_logit_normal_batch_is_stratified_in_its_quantiles() -> None:
    torch.manual_seed(0)
    u = torch.special.ndtr((torch.logit(LogitNormalTime(0.5, 2.0)(10)) - 0.5) / 2.0)
    assert (10 * u).floor().tolist() == list(range(10))


@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormalTime(0.0, 3.0)])
def test_drawn_times_differ_and_stay_strictly_between_the_ends(sampler: TimeSampler) -> None:
    torch.manual_seed(0)
    first, second = sampler(1000), sampler(1000)
    assert not torch.equal(first, second)
    assert torch.cat([first, second]).min() > 0
    assert torch.cat([first, second]).max() < 1


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_width_that_is_not_above_zero_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match=f"std={std}"):
        LogitNormalTime(std=std)
