"""The objective of stage 2 where the best denoiser has a closed form: it, and nothing else, has the least loss."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers.closed_forms import (
    SCHEDULES,
    TARGETS,
    VARIANCE_PRESERVING,
    IdealDenoiser,
    Mixture,
    PosteriorMean,
    double,
    gaussian,
    normal,
)
from torch import Tensor, nn

from latentfaces.diffusion import (
    EDM,
    Denoiser,
    DenoisingLoss,
    EDMWeighting,
    LogitNormalTime,
    MinSNRWeighting,
    RectifiedFlow,
    Target,
    UniformTime,
    UniformWeighting,
    VWeighting,
    Weighting,
)
from latentfaces.diffusion.schedule import per_sample

S = 0.6
WEIGHTINGS: dict[str, Weighting] = {
    "uniform": UniformWeighting(),
    "min_snr": MinSNRWeighting(),
    "edm": EDMWeighting(),
    "v": VWeighting(),
}
EVERY_SCHEDULE = pytest.mark.parametrize("name", SCHEDULES)
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS)
EVERY_WEIGHTING = pytest.mark.parametrize("weighting", WEIGHTINGS)
EVERY_RATIO = pytest.mark.parametrize("ratio", [0.2, 1.0, 4.0])  # of noise to data

Change = Callable[[Tensor, Tensor], Tensor]
"""(prediction, x_t) -> prediction."""

DIRECTIONS: dict[str, Change] = {
    "constant": lambda prediction, x_t: torch.ones_like(x_t),
    "latents": lambda prediction, x_t: x_t,
    "prediction": lambda prediction, x_t: prediction,
    "waves": lambda prediction, x_t: torch.sin(2 * x_t.flip(1)),
}

# clean latents of the mixture, noise and ratios of noise to data
MIXED = (
    Mixture().sample(9000, torch.Generator().manual_seed(0)),
    normal(9000, 2, 1, 1, seed=1),
    double(0.2, 1.0, 4.0).repeat(3000),
)


class ChangedDenoiser(IdealDenoiser):
    """The best denoiser, its prediction changed."""

    def __init__(self, mean: PosteriorMean, name: str, target: Target, change: Change) -> None:
        super().__init__(mean, SCHEDULES[name], target)
        self.change = change

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.change(super().forward(x_t, t, condition), x_t)


class TwoHeads(nn.Module):
    """Says x_t plus the condition, if there is one, and by its auxiliary head 0."""

    auxiliary_depth = 1

    def heads(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        return [x_t if condition is None else x_t + per_sample(condition[:, 0]), torch.zeros_like(x_t)]


def mixture_losses(mean: PosteriorMean, name: str, target: Target, weighting: str, change: Change) -> Tensor:
    """Loss per sample on one set of data and noise of the mixture, at three ratios of noise to data."""
    x0, noise, ratio = MIXED
    denoiser = ChangedDenoiser(mean, name, target, change)
    return DenoisingLoss(UniformTime(), WEIGHTINGS[weighting])(denoiser, x0, SCHEDULES[name].time_at(ratio), noise)[0]


def steepness(mean: PosteriorMean, name: str, target: Target, weighting: str, direction: Change) -> float:
    """Derivative of the loss along a direction, in standard errors; the loss is quadratic in the prediction."""
    up = mixture_losses(mean, name, target, weighting, lambda p, x_t: p + direction(p, x_t))
    down = mixture_losses(mean, name, target, weighting, lambda p, x_t: p - direction(p, x_t))
    return errors_above_zero(up - down)


def errors_above_zero(samples: Tensor) -> float:
    """Mean in standard errors."""
    return (samples.mean() / samples.std() * len(samples) ** 0.5).item()


@EVERY_SCHEDULE
@EVERY_TARGET
@EVERY_WEIGHTING
def test_loss_is_flat_at_the_posterior_mean(name: str, target: Target, weighting: str) -> None:
    slopes = {label: steepness(Mixture(), name, target, weighting, d) for label, d in DIRECTIONS.items()}
    assert all(abs(errors) < 4 for errors in slopes.values()), slopes


@EVERY_SCHEDULE
@EVERY_TARGET
@EVERY_WEIGHTING
def test_loss_is_not_flat_at_the_mean_of_other_data(name: str, target: Target, weighting: str) -> None:
    slopes = {label: steepness(gaussian(1.0), name, target, weighting, d) for label, d in DIRECTIONS.items()}
    assert max(abs(errors) for errors in slopes.values()) > 6, slopes


@EVERY_SCHEDULE
@EVERY_TARGET
@EVERY_WEIGHTING
def test_every_change_of_the_best_denoiser_costs(name: str, target: Target, weighting: str) -> None:
    best = mixture_losses(Mixture(), name, target, weighting, lambda p, x_t: p)
    changes: dict[str, Change] = {
        "smaller": lambda p, x_t: 0.7 * p,
        "larger": lambda p, x_t: 1.3 * p,
        "shifted": lambda p, x_t: p + 0.3,
        "waved": lambda p, x_t: p - 0.3 * torch.cos(3 * x_t),
    }
    for label, change in changes.items():
        assert errors_above_zero(mixture_losses(Mixture(), name, target, weighting, change) - best) > 4, label


def gaussian_losses(name: str, target: Target, t: Tensor, factor: float = 1.0) -> Tensor:
    """Loss per sample, on data N(0, S^2), of `factor` times the best prediction."""
    x0, noise = S * normal(len(t), 1, 4, 4), normal(len(t), 1, 4, 4, seed=1)
    denoiser = ChangedDenoiser(gaussian(S), name, target, lambda prediction, x_t: factor * prediction)
    return DenoisingLoss(UniformTime())(denoiser, x0, t, noise)[0]


def moments(name: str, target: Target, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variance of the target, its covariance with x_t and the variance of x_t, for data N(0, S^2)."""
    schedule = SCHEDULES[name]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    on_x0, on_noise = Denoiser(nn.Identity(), schedule, target).target_coefficients(t)
    covariance = on_x0 * alpha * S**2 + on_noise * sigma
    return on_x0**2 * S**2 + on_noise**2, covariance, alpha**2 * S**2 + sigma**2


@EVERY_SCHEDULE
@EVERY_TARGET
@EVERY_RATIO
def test_least_loss_is_the_conditional_variance_of_the_target(name: str, target: Target, ratio: float) -> None:
    t = SCHEDULES[name].time_at(torch.full((5000,), ratio, dtype=torch.float64))
    loss = gaussian_losses(name, target, t)
    of_target, covariance, of_x = moments(name, target, t[:1])
    standard_error = loss.std().item() / len(loss) ** 0.5
    assert loss.mean().item() == pytest.approx((of_target - covariance**2 / of_x).item(), abs=4 * standard_error)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_least_loss_of_a_rectified_flow_is_the_variance_of_the_data_over_that_of_the_latents(t: float) -> None:
    loss = gaussian_losses("rectified_flow", "v", torch.full((20_000,), t, dtype=torch.float64))
    standard_error = loss.std().item() / len(loss) ** 0.5
    assert loss.mean().item() == pytest.approx(S**2 / ((1 - t) ** 2 * S**2 + t**2), abs=4 * standard_error)


@EVERY_SCHEDULE
@EVERY_TARGET
@pytest.mark.parametrize("factor", [-1.0, 0.0, 0.8, 1.2, 2.0])
def test_scaled_ideal_denoiser_loses_by_what_it_is_scaled(name: str, target: Target, factor: float) -> None:
    t = SCHEDULES[name].time_at(torch.logspace(-1, 1, 5000, dtype=torch.float64))
    excess = gaussian_losses(name, target, t, factor) - gaussian_losses(name, target, t)
    _, covariance, of_x = moments(name, target, t)
    standard_error = excess.std().item() / len(t) ** 0.5
    expected = ((factor - 1) ** 2 * covariance**2 / of_x).mean().item()
    assert excess.mean().item() > 5 * standard_error
    assert excess.mean().item() == pytest.approx(expected, abs=4 * standard_error)


def test_loss_is_one_mean_square_per_head_and_sample() -> None:
    x0, noise = torch.ones(3, 1, 2, 2), torch.full((3, 1, 2, 2), 3.0)
    noise[1] = 1.0
    noise[2, 0, 0, 0] = 1.0  # three of four values are 2 off
    denoiser = Denoiser(TwoHeads(), RectifiedFlow())
    loss = DenoisingLoss(UniformTime())(denoiser, x0, torch.zeros(3), noise)
    # x_t is x0 = 1 at t = 0; the velocities are 2, 0 and mostly 2
    assert loss.tolist() == [[1.0, 1.0, 1.0], [4.0, 0.0, 3.0]]


def test_weight_multiplies_the_loss_of_its_sample() -> None:
    class Ramp(Weighting):
        def __call__(self, denoiser: Denoiser, t: Tensor) -> Tensor:
            return 10 * t

    x0, noise = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)
    loss = DenoisingLoss(UniformTime(), Ramp())(
        Denoiser(TwoHeads(), RectifiedFlow()), x0, torch.tensor([0.1, 0.5]), noise
    )
    assert loss[1].tolist() == [4.0, 20.0]


def test_condition_reaches_the_network() -> None:
    zeros, condition = torch.zeros(2, 1, 2, 2), torch.tensor([[0.0], [3.0]])
    denoiser = Denoiser(TwoHeads(), RectifiedFlow())
    assert DenoisingLoss(UniformTime())(denoiser, zeros, torch.ones(2), zeros, condition)[0].tolist() == [0.0, 9.0]


def test_total_is_the_mean_of_the_first_head_and_a_share_of_the_others() -> None:
    losses = torch.tensor([[1.0, 3.0], [8.0, 4.0]])
    assert DenoisingLoss(UniformTime(), auxiliary_weight=0.5).total(losses).item() == 2 + 0.5 * 6
    assert DenoisingLoss(UniformTime()).total(losses).item() == 2 + 0.25 * 6
    assert DenoisingLoss(UniformTime()).total(losses[:1]).item() == 2


def test_times_and_noise_are_drawn_where_they_are_not_given() -> None:
    denoiser, loss = IdealDenoiser(gaussian(S), RectifiedFlow()), DenoisingLoss(LogitNormalTime())
    x0 = S * torch.randn(8, 1, 2, 2)
    torch.manual_seed(0)
    first, other = loss(denoiser, x0), loss(denoiser, x0)
    torch.manual_seed(0)
    assert first.shape == (1, 8)
    assert torch.equal(first, loss(denoiser, x0))
    assert not torch.equal(first, other)


@EVERY_SCHEDULE
@EVERY_TARGET
def test_drawn_times_are_those_of_the_time_sampler(name: str, target: Target) -> None:
    asked: list[Tensor] = []

    class Probe(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            asked.append(t)
            return x_t

    torch.manual_seed(0)
    DenoisingLoss(LogitNormalTime(0.4))(Denoiser(Probe(), SCHEDULES[name], target), torch.zeros(8, 1, 2, 2))
    torch.manual_seed(0)
    assert torch.equal(asked[0], SCHEDULES[name].condition(LogitNormalTime(0.4)(8, SCHEDULES[name])))


def test_automatic_mean_is_that_for_the_size_of_the_latents() -> None:
    denoiser = IdealDenoiser(gaussian(S), RectifiedFlow())
    x0, losses = torch.randn(4, 16, 32, 32), []
    for mean in ("auto", math.log(2)):
        torch.manual_seed(0)
        losses.append(DenoisingLoss(LogitNormalTime(mean))(denoiser, x0))
    assert torch.equal(*losses)


def weights(weighting: Weighting, name: str, target: Target, ratio: Tensor) -> Tensor:
    """Weights at given ratios of noise to data."""
    denoiser = Denoiser(nn.Identity(), SCHEDULES[name], target)
    return weighting(denoiser, denoiser.schedule.time_at(ratio))


RATIOS = torch.logspace(-2, 1.5, 30, dtype=torch.float64)


@EVERY_SCHEDULE
@EVERY_TARGET
def test_uniform_weights_are_one(name: str, target: Target) -> None:
    assert torch.equal(weights(UniformWeighting(), name, target, RATIOS), torch.ones_like(RATIOS))


@pytest.mark.parametrize("name", VARIANCE_PRESERVING)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_has_the_weights_of_its_paper_in_every_target(name: str, gamma: float) -> None:
    snr = RATIOS**-2
    least = torch.minimum(snr, torch.full_like(snr, gamma))
    papers: dict[Target, Tensor] = {"x0": least, "eps": least / snr, "v": least / (snr + 1)}
    for target, expected in papers.items():
        assert torch.allclose(weights(MinSNRWeighting(gamma), name, target, RATIOS), expected), target


def test_min_snr_of_a_rectified_flow_is_known_at_three_times() -> None:
    denoiser = Denoiser(nn.Identity(), RectifiedFlow(), "v")
    # SNR 81, 1, 1/81; an error of v is t times as large in x0
    expected = [5 * 0.1**2, 0.5**2, 0.1**2]
    assert MinSNRWeighting()(denoiser, double(0.1, 0.5, 0.9)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", [*VARIANCE_PRESERVING, "edm"])
def test_edm_weights_are_one_for_v(name: str) -> None:
    assert torch.allclose(weights(EDMWeighting(), name, "v", RATIOS), torch.ones_like(RATIOS))


@pytest.mark.parametrize("name", SCHEDULES)
def test_edm_weights_are_those_of_karras_et_al_for_x0(name: str) -> None:
    expected = (RATIOS**2 + 1) / RATIOS**2
    assert torch.allclose(weights(EDMWeighting(), name, "x0", RATIOS), expected)


def test_v_weights_of_a_rectified_flow_are_those_of_its_paper() -> None:
    t = double(0.01, 0.05, 0.1, 0.5, 0.9)
    papers: dict[Target, Tensor] = {"x0": 1 / t**2, "eps": 1 / (1 - t) ** 2, "v": torch.ones_like(t)}
    bounded = (t / 0.05).square().clamp(max=1)  # below t = 0.05 the error of x0 keeps the weight 400
    for target, expected in papers.items():
        denoiser = Denoiser(nn.Identity(), RectifiedFlow(), target)
        assert torch.allclose(VWeighting()(denoiser, t), expected * bounded), target


@EVERY_SCHEDULE
def test_v_weighted_loss_of_x0_is_the_squared_error_of_the_implied_v(name: str) -> None:
    x0, noise, guess = normal(5, 2, 3, 3), normal(5, 2, 3, 3, seed=1), normal(5, 2, 3, 3, seed=2)
    schedule = SCHEDULES[name]
    t = schedule.time_at(double(0.1, 0.3, 1.0, 4.0, 10.0))
    denoiser = IdealDenoiser(lambda x_t, alpha, sigma: guess, schedule, "x0")
    implied_noise = (schedule.add_noise(x0, noise, t) - per_sample(schedule.alpha(t)) * guess) / per_sample(
        schedule.sigma(t)
    )
    a, b = (per_sample(part) for part in schedule.v_coefficients(t))
    expected = (a * (guess - x0) + b * (implied_noise - noise)).square().mean((1, 2, 3))
    assert torch.allclose(DenoisingLoss(UniformTime(), VWeighting())(denoiser, x0, t, noise)[0], expected)


@EVERY_SCHEDULE
@pytest.mark.parametrize("weighting", ["min_snr", "edm", "v"])
def test_weighted_loss_of_the_same_data_is_the_same_in_every_target(name: str, weighting: str) -> None:
    losses = [mixture_losses(gaussian(2.0), name, target, weighting, lambda p, x_t: p) for target in TARGETS]
    assert torch.allclose(losses[0], losses[1])
    assert torch.allclose(losses[0], losses[2])


def test_edm_loss_is_that_of_karras_et_al() -> None:
    # Eq. 8 of Karras et al. 2022 with lambda = (sigma^2 + 1) / sigma^2, for a network that says half its input.
    class Half(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0.5 * x

    x0, noise, sigma = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1), double(0.05, 0.7, 2.0, 40.0)
    s = per_sample(sigma)
    x = x0 + s * noise
    output = -0.5 * x / (s**2 + 1).sqrt()  # v is minus their output
    denoised = x / (s**2 + 1) + s / (s**2 + 1).sqrt() * output
    expected = (sigma**2 + 1) / sigma**2 * (denoised - x0).square().mean((1, 2, 3))
    loss = DenoisingLoss(UniformTime(), EDMWeighting())(Denoiser(Half(), EDM()), x0, sigma / 80, noise)
    assert torch.allclose(loss[0], expected)
