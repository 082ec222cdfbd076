"""Samplers on data whose path from noise has a closed form.

For data N(0, s^2), the equation dx / dt of every schedule only rescales: x at t is proportional to its std.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from helpers.closed_forms import SCHEDULES, TARGETS, IdealDenoiser, Mixture, double, gaussian, normal, point
from torch import Tensor

from latentfaces.diffusion import (
    EDM,
    DDIMSampler,
    DDPMSampler,
    DPMpp2MSampler,
    EulerSampler,
    HeunSampler,
    RectifiedFlow,
    Sampler,
    Target,
    VPCosine,
    VPLinear,
)
from latentfaces.diffusion.samplers import Auto, Trajectory
from latentfaces.diffusion.schedule import Spacing
from latentfaces.errors import UserError


class SDEDPMpp2M(DPMpp2MSampler):
    """Sampler of `sampler=dpmpp_2m_sde`."""

    def __init__(self, num_steps: int, shift: float | Auto = 1.0, spacing: Spacing | Auto = "auto") -> None:
        super().__init__(num_steps, shift, spacing, eta=1.0)


S = 0.5
NOISE = double(-2.0, 0.3, 1.0).view(3, 1, 1, 1)
ODE_SAMPLERS = [EulerSampler, HeunSampler, DDIMSampler, DPMpp2MSampler]
RANDOM_SAMPLERS = [DDPMSampler, SDEDPMpp2M]
SAMPLERS = [*ODE_SAMPLERS, *RANDOM_SAMPLERS]
STRAIGHT = ["rectified_flow", "edm"]
EVERY_SCHEDULE = pytest.mark.parametrize("name", SCHEDULES)
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS)
EVERY_ODE_SAMPLER = pytest.mark.parametrize("kind", ODE_SAMPLERS)
EVERY_SAMPLER = pytest.mark.parametrize("kind", SAMPLERS)


def ideal(name: str = "rectified_flow", target: Target = "v", std: float = S) -> IdealDenoiser:
    """Return the best denoiser of data N(0, std^2)."""
    return IdealDenoiser(gaussian(std), SCHEDULES[name], target)


@EVERY_SCHEDULE
def test_uniform_times_are_even_on_the_scale_of_the_schedule(name: str) -> None:
    schedule = SCHEDULES[name]
    first = ideal(name).first_time
    times = torch.tensor(DPMpp2MSampler(10, spacing="uniform").times(schedule, first), dtype=torch.float64)
    steps = schedule.condition(times).diff()
    torch.testing.assert_close(steps, steps[:1].expand(10))


def exact(denoiser: IdealDenoiser, noise: Tensor) -> Tensor:
    """Return the exact solution of the ODE from noise, for data N(0, S^2)."""
    first = double(denoiser.first_time)
    alpha, sigma = denoiser.schedule.alpha(first), denoiser.schedule.sigma(first)
    return S * sigma / (alpha**2 * S**2 + sigma**2).sqrt() * noise


def error(sampler: Sampler, denoiser: IdealDenoiser) -> float:
    """Largest distance from the exact map on a few noises."""
    return (sampler(denoiser, NOISE) - exact(denoiser, NOISE)).abs().max().item()


ORDERS = [  # where the error is that of the order already at tens of steps
    *((name, EulerSampler, "uniform", 1) for name in SCHEDULES if name != "edm"),
    ("rectified_flow", HeunSampler, "uniform", 2),
    ("vp_cosine", HeunSampler, "uniform", 2),
    # sigma^2 of vp_linear is linear at t = 0, so with uniform times the jump to x0 from t = 1 / n costs 1 / n
    *((name, HeunSampler, "karras", 2) for name in ("vp_linear", "vp_linear_zero_snr", "edm")),
    ("edm", EulerSampler, "karras", 1),
    *((name, DDIMSampler, "karras", 1) for name in SCHEDULES),
    *((name, DPMpp2MSampler, "log_snr", 2) for name in SCHEDULES),
]


@pytest.mark.parametrize(("name", "kind", "spacing", "order"), ORDERS)
def test_error_falls_with_the_order_of_the_solver(name: str, kind: type[Sampler], spacing: Spacing, order: int) -> None:
    n = 32 if kind is HeunSampler and spacing == "karras" and name != "edm" else 64  # the jump to x0 costs 1e-5
    coarse, fine = error(kind(n, spacing=spacing), ideal(name)), error(kind(2 * n, spacing=spacing), ideal(name))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.12)


@EVERY_SCHEDULE
@EVERY_TARGET
@pytest.mark.parametrize(
    ("kind", "bound"), [(EulerSampler, 0.015), (DDIMSampler, 0.015), (HeunSampler, 3e-4), (DPMpp2MSampler, 1e-3)]
)
def test_many_steps_end_at_the_exact_latents(name: str, target: Target, kind: type[Sampler], bound: float) -> None:
    spacing: Spacing = "karras" if name.startswith("vp_linear") and kind is HeunSampler else SCHEDULES[name].spacing
    assert error(kind(256, spacing=spacing), ideal(name, target)) < bound


@EVERY_SAMPLER
@EVERY_SCHEDULE
def test_target_of_the_network_changes_nothing(kind: type[Sampler], name: str) -> None:
    fresh, x_t, times = normal(4, 8, 2, 1, 1, seed=1), normal(8, 2, 1, 1), (0.95, 0.7, 0.4, 0.1, 0.0)
    latents = []
    for target in TARGETS:
        draws = iter(fresh)
        denoiser = IdealDenoiser(Mixture(), SCHEDULES[name], target)
        latents.append(kind(4).solve(denoiser, x_t, Trajectory(times, draws.__next__)))
    assert torch.allclose(latents[0], latents[1], rtol=0, atol=1e-8)
    assert torch.allclose(latents[0], latents[2], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [EulerSampler, HeunSampler])
def test_shift_keeps_the_order(kind: type[Sampler]) -> None:
    slope = math.log2(error(kind(64, shift=2.0), ideal()) / error(kind(128, shift=2.0), ideal()))
    assert slope == pytest.approx({EulerSampler: 1, HeunSampler: 2}[kind], abs=0.1)


def test_second_order_is_worth_its_second_evaluation() -> None:
    assert error(HeunSampler(16), ideal()) < 0.5 * error(EulerSampler(32), ideal())


@EVERY_SCHEDULE
def test_second_order_costs_nothing_in_dpm_solver(name: str) -> None:
    first, second = DDIMSampler(32, spacing="log_snr"), DPMpp2MSampler(32, spacing="log_snr")
    assert error(second, ideal(name)) < 0.2 * error(first, ideal(name))


@EVERY_SCHEDULE
@EVERY_SAMPLER
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_data_that_are_one_point_are_reached_from_any_noise(name: str, kind: type[Sampler], num_steps: int) -> None:
    x0 = normal(1, 2, 2, 2)
    latents = kind(num_steps)(IdealDenoiser(point(x0), SCHEDULES[name]), normal(3, 2, 2, 2, seed=1))
    assert torch.allclose(latents, x0.expand(3, -1, -1, -1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", STRAIGHT)
def test_euler_is_ddim_where_paths_of_given_data_are_straight(name: str) -> None:
    denoiser, noise = IdealDenoiser(Mixture(), SCHEDULES[name]), normal(8, 2, 1, 1)
    euler, ddim = EulerSampler(7, shift=1.3)(denoiser, noise), DDIMSampler(7, shift=1.3)(denoiser, noise)
    assert torch.allclose(euler, ddim, rtol=0, atol=1e-9)


@EVERY_SCHEDULE
@EVERY_TARGET
@pytest.mark.parametrize("kind", [EulerSampler, HeunSampler])
def test_last_step_is_the_predicted_data(kind: type[Sampler], name: str, target: Target) -> None:
    denoiser = IdealDenoiser(Mixture(), SCHEDULES[name], target)
    t, x_t = SCHEDULES[name].time_at(double(0.4)), normal(8, 2, 1, 1)
    expected = denoiser.predict_x0(x_t, t.expand(8))
    assert torch.allclose(kind(1).solve(denoiser, x_t, Trajectory([t.item(), 0.0])), expected, rtol=0, atol=1e-9)


def test_euler_is_not_ddim_where_they_are_curved() -> None:
    euler, ddim = (kind(7)(ideal("vp_cosine"), NOISE) for kind in (EulerSampler, DDIMSampler))
    assert not torch.allclose(euler, ddim, rtol=0, atol=1e-2)


@EVERY_SCHEDULE
def test_dpm_solver_starts_and_ends_with_ddim(name: str) -> None:
    denoiser, dpm, ddim = ideal(name), DPMpp2MSampler(4), DDIMSampler(4)
    assert torch.allclose(DPMpp2MSampler(1)(denoiser, NOISE), DDIMSampler(1)(denoiser, NOISE))
    times = ddim.times(denoiser.schedule)
    for way in (Trajectory(times[:2]), Trajectory(times[1:3]), Trajectory(times[3:])):
        assert torch.allclose(dpm.solve(denoiser, NOISE, way), ddim.solve(denoiser, NOISE, way))


def test_two_steps_of_dpm_solver_are_algorithm_2_by_hand() -> None:
    times, denoiser = [0.8, 0.6, 0.3], ideal("vp_cosine")
    alpha, sigma = (getattr(VPCosine(), share)(double(*times)).tolist() for share in ("alpha", "sigma"))
    lambdas = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    h1, h2 = lambdas[1] - lambdas[0], lambdas[2] - lambdas[1]
    first = denoiser.predict_x0(NOISE, double(0.8, 0.8, 0.8))
    x = sigma[1] / sigma[0] * NOISE - alpha[1] * (math.exp(-h1) - 1) * first
    second = denoiser.predict_x0(x, double(0.6, 0.6, 0.6))
    r = h1 / h2
    d = (1 + 1 / (2 * r)) * second - 1 / (2 * r) * first
    x = sigma[2] / sigma[1] * x - alpha[2] * (math.exp(-h2) - 1) * d
    assert torch.allclose(DPMpp2MSampler(2).solve(denoiser, NOISE, Trajectory(times)), x, rtol=0, atol=1e-12)


class Linear(IdealDenoiser):
    """On a rectified flow, the velocity a x + b t + c."""

    def __init__(self, a: float, b: float = 0.0, c: float = 0.0) -> None:
        super().__init__(gaussian(1.0), RectifiedFlow())
        self.a, self.b, self.c = a, b, c

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.asked.append(float(t[0]))
        return self.a * x_t + self.b * t[:, None, None, None] + self.c


@EVERY_ODE_SAMPLER
def test_one_step_follows_the_first_velocity_all_the_way(kind: type[Sampler]) -> None:
    # v = 2 x + 3 t at t = 1, followed for a time of -1: x - (2 x + 3).
    latents = kind(1)(Linear(2.0, 3.0), torch.tensor([1.0, 4.0]).view(2, 1, 1, 1))
    assert latents.flatten().tolist() == [-4.0, -7.0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # v = x: 1 -> 1 - 1/2 = 1/2 -> 1/2 - 1/4 = 1/4
        (EulerSampler, 0.25),
        (DDIMSampler, 0.25),
        # a trapezium of 1 and 1/2 gives 1 - 1/2 * 3/4 = 5/8; the last step is Euler's: 5/8 - 5/16 = 5/16
        (HeunSampler, 0.3125),
    ],
)
def test_two_steps_by_hand(kind: type[Sampler], expected: float) -> None:
    assert kind(2)(Linear(1.0), torch.ones(1, 1, 1, 1)).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kind", [EulerSampler, HeunSampler, DDIMSampler])
@pytest.mark.parametrize("num_steps", [1, 3, 7])
def test_constant_velocity_is_followed_exactly(kind: type[Sampler], num_steps: int) -> None:
    noise = normal(2, 1, 2, 2)
    assert torch.allclose(kind(num_steps, shift=1.7)(Linear(0.0, c=0.3), noise), noise - 0.3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (EulerSampler, [1.0, 0.75, 0.5, 0.25]),
        (DDIMSampler, [1.0, 0.75, 0.5, 0.25]),
        (DDPMSampler, [1.0, 0.75, 0.5, 0.25]),
        (SDEDPMpp2M, [1.0, 0.75, 0.5, 0.25]),
        (DPMpp2MSampler, [1.0, 0.75, 0.5, 0.25]),
        (HeunSampler, [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_denoiser_is_asked_at_the_times_of_the_algorithm(kind: type[Sampler], expected: list[float]) -> None:
    denoiser = Linear(0.0)
    kind(4)(denoiser, torch.zeros(3, 1, 2, 2))
    assert denoiser.asked == expected


def responses(sampler: Sampler, denoiser: IdealDenoiser) -> Tensor:
    """Return the coefficients of the initial and of each added noise, as the sampler of a linear denoiser is linear."""
    axes = torch.eye(sampler.num_steps + 1, dtype=torch.float64)[..., None, None, None].unbind(1)
    return sampler(denoiser, axes[0], iter(axes[1:]).__next__).flatten()


@EVERY_SCHEDULE
@pytest.mark.parametrize("kind", RANDOM_SAMPLERS)
def test_random_samplers_have_the_variance_of_the_data_in_the_limit_of_many_steps(
    name: str, kind: type[Sampler]
) -> None:
    variances = [responses(kind(n), ideal(name)).square().sum().item() for n in (100, 400)]
    coarse, fine = (abs(variance - S**2) for variance in variances)
    assert fine < 0.04 * S**2
    assert fine < 0.35 * coarse


@EVERY_SCHEDULE
def test_sde_dpm_solver_is_of_second_order_where_ancestral_sampling_is_of_first(name: str) -> None:
    def wrong(sampler: Sampler) -> float:
        return abs(responses(sampler, ideal(name)).square().sum().item() - S**2)

    first, second = ([wrong(kind(n, spacing="log_snr")) for n in (64, 128)] for kind in RANDOM_SAMPLERS)
    assert math.log2(first[0] / first[1]) == pytest.approx(1, abs=0.15)
    assert math.log2(second[0] / second[1]) == pytest.approx(2, abs=0.3)
    assert second[1] < 0.2 * first[1]


@EVERY_SCHEDULE
def test_sde_dpm_solver_starts_and_ends_with_ancestral_sampling(name: str) -> None:
    denoiser, times = ideal(name), DDPMSampler(4).times(SCHEDULES[name])
    for way in (times[:2], times[1:3], times[3:]):
        ours, ddpm = (
            kind(1).solve(denoiser, NOISE, Trajectory(way, NOISE.square)) for kind in (SDEDPMpp2M, DDPMSampler)
        )
        assert torch.allclose(ours, ddpm, rtol=0, atol=1e-12)


def test_two_steps_of_sde_dpm_solver_by_hand() -> None:
    times, denoiser, eta = [0.8, 0.6, 0.3], ideal("vp_cosine"), 0.7
    alpha, sigma = (getattr(VPCosine(), share)(double(*times)).tolist() for share in ("alpha", "sigma"))
    h1, h2 = (math.log(a / s * s0 / a0) for a, a0, s, s0 in zip(alpha[1:], alpha, sigma[1:], sigma, strict=False))
    z1, z2 = normal(2, *NOISE.shape, seed=1)

    def step(x: Tensor, i: int, h: float, x0: Tensor, z: Tensor) -> Tensor:
        mean = sigma[i] / sigma[i - 1] * math.exp(-eta * h) * x + alpha[i] * (1 - math.exp(-(1 + eta) * h)) * x0
        return mean + sigma[i] * math.sqrt(1 - math.exp(-2 * eta * h)) * z

    first = denoiser.predict_x0(NOISE, double(0.8, 0.8, 0.8))
    x = step(NOISE, 1, h1, first, z1)
    second = denoiser.predict_x0(x, double(0.6, 0.6, 0.6))
    x = step(x, 2, h2, second + 0.5 * h2 / h1 * (second - first), z2)
    found = DPMpp2MSampler(2, eta=eta).solve(denoiser, NOISE, Trajectory(times, iter((z1, z2)).__next__))
    assert torch.allclose(found, x, rtol=0, atol=1e-12)


@EVERY_SCHEDULE
@pytest.mark.parametrize("kind", RANDOM_SAMPLERS)
def test_start_noise_is_forgotten_on_the_way_of_a_random_sampler(name: str, kind: type[Sampler]) -> None:
    denoiser = ideal(name)
    assert responses(kind(200), denoiser)[0].abs() < 0.05
    assert responses(DDIMSampler(200), denoiser)[0] == pytest.approx(S, rel=0.05)


@pytest.mark.parametrize("kind", [DDIMSampler, DPMpp2MSampler])
def test_the_more_fresh_noise_the_less_of_the_start_and_the_same_variance(
    kind: type[DDIMSampler | DPMpp2MSampler],
) -> None:
    # A schedule that starts with some of the data: where it starts with none, a step of the SDE forgets the start.
    kept = {eta: responses(kind(400, eta=eta), ideal("vp_linear")) for eta in (0.0, 0.2, 0.6, 1.0)}
    for response in kept.values():
        assert response.square().sum().item() == pytest.approx(S**2, rel=0.05)
    assert S > kept[0.2][0] > 1.5 * kept[0.6][0] > 2 * kept[1.0][0] > 0
    assert kept[0.0][0].item() == pytest.approx(S, rel=0.01)


@EVERY_SCHEDULE
def test_eta_of_one_is_ancestral_sampling(name: str) -> None:
    denoiser = ideal(name)
    ddim, ddpm = responses(DDIMSampler(9, eta=1.0), denoiser), responses(DDPMSampler(9), denoiser)
    assert torch.equal(ddim, ddpm)
    assert not torch.allclose(ddim, responses(DDIMSampler(9, eta=0.9), denoiser))


@pytest.mark.parametrize("name", ["vp_cosine", "vp_linear", "vp_linear_zero_snr"])
@EVERY_TARGET
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.2), (0.5, 0.45), (0.05, 0.01)])
def test_one_ancestral_step_is_the_posterior_of_ho_et_al(name: str, target: Target, t: float, s: float) -> None:
    x0, x_t, fresh = (normal(4, 2, 2, 2, seed=seed) for seed in range(3))
    schedule = SCHEDULES[name]
    bar_t, bar_s = (schedule.alpha(double(time)).item() ** 2 for time in (t, s))
    alpha = bar_t / bar_s
    beta = 1 - alpha
    mean = (  # eq. 7
        math.sqrt(bar_s) * beta / (1 - bar_t) * x0 + math.sqrt(alpha) * (1 - bar_s) / (1 - bar_t) * x_t
    )
    variance = (1 - bar_s) / (1 - bar_t) * beta
    denoiser = IdealDenoiser(point(x0), schedule, target)
    x_s = DDPMSampler(1).solve(denoiser, x_t, Trajectory([t, s], lambda: fresh))
    assert torch.allclose(x_s, mean + math.sqrt(variance) * fresh, rtol=0, atol=1e-9)


@EVERY_SCHEDULE
def test_an_ancestral_step_from_given_data_leaves_them_at_the_noise_of_their_time(name: str) -> None:
    # x0 fixed: the mean of x_s is alpha(s) x0 and its variance, over x_t and fresh noise, sigma(s)^2
    schedule, (t, s) = SCHEDULES[name], SCHEDULES[name].time_at(double(2.0, 0.6)).tolist()
    denoiser = IdealDenoiser(point(torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)), schedule)
    at_t = schedule.sigma(double(t)) * double(0.0, 1.0, 0.0) + schedule.alpha(double(t)) * 0.7
    x_s = DDPMSampler(1).solve(
        denoiser, at_t.view(3, 1, 1, 1), Trajectory([t, s], lambda: double(0, 0, 1).view(3, 1, 1, 1))
    )
    mean, *others = x_s.flatten().tolist()
    assert mean == pytest.approx(0.7 * schedule.alpha(double(s)).item())
    assert sum((x - mean) ** 2 for x in others) == pytest.approx(schedule.sigma(double(s)).item() ** 2)


@pytest.mark.parametrize(("name", "target"), [("rectified_flow", "v"), ("vp_cosine", "eps"), ("edm", "x0")])
@EVERY_SAMPLER
def test_samples_of_a_mixture_are_distributed_as_it_is(name: str, target: Target, kind: type[Sampler]) -> None:
    torch.manual_seed(0)
    latents = kind(50)(IdealDenoiser(Mixture(), SCHEDULES[name], target), normal(2000, 2, 1, 1)).flatten(1)
    nearest = torch.cdist(latents, Mixture.means).argmin(1)
    true = Mixture().sample(100_000, torch.Generator().manual_seed(1)).flatten(1)
    true_nearest = torch.cdist(true, Mixture.means).argmin(1)
    for part in range(3):
        ours, theirs = latents[nearest == part], true[true_nearest == part]
        assert len(ours) / len(latents) == pytest.approx(len(theirs) / len(true), abs=0.04)
        assert torch.allclose(ours.mean(0), theirs.mean(0), rtol=0, atol=0.1)
        assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.2)


@pytest.mark.parametrize("name", ["rectified_flow", "edm"])
def test_fresh_noise_is_asked_once_a_step_but_for_the_last(name: str) -> None:
    calls = []

    def fresh() -> Tensor:
        calls.append(1)
        return torch.zeros_like(NOISE)

    for sampler, expected in (
        (DDPMSampler(5), 4),
        (DDIMSampler(5, eta=0.5), 4),
        (DPMpp2MSampler(5, eta=0.5), 4),
        (DPMpp2MSampler(5), 0),
        (DDIMSampler(5), 0),
        (HeunSampler(5), 0),
    ):
        calls.clear()
        sampler(ideal(name), NOISE, fresh)
        assert len(calls) == expected


def test_noise_is_drawn_where_none_is_given() -> None:
    torch.manual_seed(0)
    first, second = DDPMSampler(5)(ideal(), NOISE), DDPMSampler(5)(ideal(), NOISE)
    torch.manual_seed(0)
    assert torch.equal(first, DDPMSampler(5)(ideal(), NOISE))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(1.0, [1.0, 0.75, 0.5, 0.25, 0.0]), (3.0, [1.0, 0.9, 0.75, 0.5, 0.0]), (1 / 3, [1.0, 0.5, 0.25, 0.1, 0.0])],
)
def test_times_go_from_one_to_zero_by_the_shift(shift: float, expected: list[float]) -> None:
    assert EulerSampler(4, shift, "uniform").times(RectifiedFlow()) == pytest.approx(expected)


@pytest.mark.parametrize("shift", [1.0, 3.0, 1 / 3])
def test_times_of_edm_are_even_in_the_angle_and_shifted_like_those_of_a_rectified_flow(shift: float) -> None:
    even = [math.tan(math.atan(80) * (1 - step / 4)) / 80 for step in range(5)]
    expected = [shift * t / (1 + (shift - 1) * t) for t in even]
    assert EulerSampler(4, shift, "uniform").times(EDM()) == pytest.approx(expected)


@pytest.mark.parametrize(("shape", "shift"), [((4, 32, 32), 1.0), ((16, 32, 32), 2.0), ((7, 16, 64, 64), 4.0)])
def test_automatic_shift_is_the_root_of_the_size_over_4096(shape: tuple[int, ...], shift: float) -> None:
    assert EulerSampler(9, "auto").times(RectifiedFlow(), shape=shape) == EulerSampler(9, shift).times(RectifiedFlow())


@EVERY_ODE_SAMPLER
def test_automatic_shift_is_for_the_size_of_the_latents(kind: type[Sampler]) -> None:
    denoiser, noise = ideal(), normal(2, 16, 32, 32)
    auto, by_hand = kind(5, "auto"), kind(5, 2.0)
    assert torch.equal(auto(denoiser, noise), by_hand(denoiser, noise))
    assert torch.equal(auto.refine(denoiser, noise, 0.9), by_hand.refine(denoiser, noise, 0.9))
    assert torch.equal(auto.invert(denoiser, noise), by_hand.invert(denoiser, noise))


def test_shift_multiplies_the_noise_over_the_data_of_each_time() -> None:
    plain, shifted = (double(*EulerSampler(5, shift).times(VPCosine())[1:-1]) for shift in (1.0, 2.5))
    assert torch.allclose(VPCosine().ratio(shifted), 2.5 * VPCosine().ratio(plain))


def test_karras_spacing_is_equation_5_by_hand() -> None:
    # (80^(1/7) + i / 3 (0.002^(1/7) - 80^(1/7)))^7
    expected = [80.0, 9.72320, 0.469979, 0.002, 0.0]
    assert (80 * double(*EulerSampler(4).times(EDM()))).tolist() == pytest.approx(expected, rel=1e-4)
    assert EulerSampler(4).times(EDM()) == EulerSampler(4, spacing="karras").times(EDM())


def test_spacing_in_the_logarithm_of_the_noise_over_the_data_is_even() -> None:
    times = double(*EulerSampler(5, spacing="log_snr").times(VPLinear())[:-1])
    assert VPLinear().ratio(times)[1:].tolist() == pytest.approx([80 * (0.002 / 80) ** (i / 4) for i in (1, 2, 3, 4)])
    times = EulerSampler(5, spacing="log_snr").times(EDM())
    assert [80 * t for t in times] == pytest.approx([*(80 * (0.002 / 80) ** (i / 4) for i in range(5)), 0])


def test_spacing_of_an_edm_is_that_of_its_own_noise_where_it_has_less() -> None:
    assert EulerSampler(3).times(EDM(10.0))[0] == 1.0
    middle = (0.5 * 10 ** (1 / 7) + 0.5 * 0.002 ** (1 / 7)) ** 7
    assert 10 * EulerSampler(3).times(EDM(10.0))[1] == pytest.approx(middle)


@EVERY_SCHEDULE
@pytest.mark.parametrize("spacing", ["auto", "uniform", "karras", "log_snr"])
@pytest.mark.parametrize("first", [1.0, 0.98])
def test_times_start_at_the_first_end_at_zero_and_only_fall(name: str, spacing: Spacing, first: float) -> None:
    for shift, num_steps in itertools.product((0.1, 0.7, 1.0, 3.0, 11.1), (1, 2, 50)):
        times = HeunSampler(num_steps, shift, spacing).times(SCHEDULES[name], first)
        assert len(times) == num_steps + 1
        assert times[0] == first
        assert times[-1] == 0.0
        assert all(later < earlier for earlier, later in itertools.pairwise(times)), (shift, num_steps)


@EVERY_SAMPLER
@EVERY_SCHEDULE
def test_any_spacing_shift_and_number_of_steps_gives_numbers(kind: type[Sampler], name: str) -> None:
    spacings: tuple[Spacing, ...] = ("uniform", "karras", "log_snr")
    for spacing, shift, num_steps in itertools.product(spacings, (0.3, 3.0), (1, 2, 5)):
        for denoiser in (ideal(name), ideal(name, "eps")):
            sampler = kind(num_steps, shift, spacing)
            assert sampler(denoiser, NOISE).isfinite().all(), (spacing, shift, num_steps)
            assert sampler.is_random or sampler.invert(denoiser, NOISE).isfinite().all(), (spacing, shift, num_steps)


@pytest.mark.parametrize("name", ["rectified_flow", "vp_linear_zero_snr"])
@EVERY_SAMPLER
def test_sampling_starts_where_the_denoiser_says(name: str, kind: type[Sampler]) -> None:
    denoiser = ideal(name, "eps")
    kind(4)(denoiser, NOISE)
    assert denoiser.asked[0] == denoiser.first_time < 1


@pytest.mark.parametrize("name", ["rectified_flow", "vp_linear", "edm"])
def test_start_noise_has_the_deviation_of_its_time(name: str) -> None:
    seen: list[Tensor] = []

    class Probe(IdealDenoiser):
        def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            seen.append(x_t)
            return super().forward(x_t, t, condition)

    EulerSampler(3)(Probe(gaussian(S), SCHEDULES[name]), NOISE)
    assert torch.allclose(seen[0], SCHEDULES[name].sigma(double(1.0)) * NOISE)


@EVERY_SAMPLER
def test_refining_starts_where_it_is_told_and_goes_on_by_the_times_below(kind: type[Sampler]) -> None:
    denoiser = Linear(0.0)
    kind(4).refine(denoiser, torch.zeros(3, 1, 2, 2), start=0.6)
    assert list(dict.fromkeys(denoiser.asked)) == pytest.approx([0.6, 0.5, 0.25])
    denoiser.asked.clear()
    kind(4).refine(denoiser, torch.zeros(3, 1, 2, 2), start=0.5)
    assert list(dict.fromkeys(denoiser.asked)) == [0.5, 0.25]


@EVERY_SAMPLER
@EVERY_SCHEDULE
def test_refining_from_the_start_is_sampling(kind: type[Sampler], name: str) -> None:
    denoiser = ideal(name, "eps")
    start = SCHEDULES[name].sigma(double(denoiser.first_time)).item() * NOISE
    fresh = [normal(3, 1, 1, 1, seed=seed) for seed in range(5)]
    whole, refined = iter(fresh), iter(fresh)
    latents = kind(5)(denoiser, NOISE, lambda: next(whole))
    assert torch.equal(kind(5).refine(denoiser, start, 1.0, lambda: next(refined)), latents)


@EVERY_ODE_SAMPLER
@EVERY_SCHEDULE
def test_refining_ends_at_the_exact_latents(kind: type[Sampler], name: str) -> None:
    t = SCHEDULES[name].time_at(double(0.9))
    deviation = (SCHEDULES[name].alpha(t) ** 2 * S**2 + SCHEDULES[name].sigma(t) ** 2).sqrt()
    latents = kind(256).refine(ideal(name), deviation * NOISE, t.item())
    assert torch.allclose(latents, S * NOISE, rtol=0, atol=0.02)


@EVERY_SAMPLER
def test_refining_what_has_no_noise_changes_nothing(kind: type[Sampler]) -> None:
    denoiser = ideal()
    assert torch.equal(kind(4).refine(denoiser, NOISE, 0.0), NOISE)
    assert denoiser.asked == []


@EVERY_ODE_SAMPLER
@EVERY_SCHEDULE
def test_inversion_finds_the_noise_that_leads_to_the_latents(kind: type[Sampler], name: str) -> None:
    denoiser, sampler = ideal(name), kind(200)
    latents, bound = exact(denoiser, NOISE), 0.04 if kind in (EulerSampler, DDIMSampler) else 0.006
    found = sampler.invert(denoiser, latents)
    assert torch.allclose(found, NOISE, rtol=0, atol=bound)
    assert torch.allclose(sampler(denoiser, found), latents, rtol=0, atol=bound)


class Inexact(IdealDenoiser):
    """Add 0.01 to the best prediction of data N(0, 1)."""

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x_t, t, condition) + 0.01


@EVERY_SAMPLER
@EVERY_SCHEDULE
@EVERY_TARGET
@pytest.mark.parametrize("spacing", ["auto", "karras"])
def test_an_error_of_one_percent_stays_small(kind: type[Sampler], name: str, target: Target, spacing: Spacing) -> None:
    noise, fresh = normal(16, 3, 8, 8), normal(20, 16, 3, 8, 8, seed=1)
    inexact, best = (
        kind(20, spacing=spacing)(make(gaussian(1.0), SCHEDULES[name], target), noise, iter(fresh).__next__)
        for make in (Inexact, IdealDenoiser)
    )
    bound = {"v": 0.03, "eps": 0.07, "x0": 0.12}[target]
    assert (inexact - best).square().mean().sqrt() < bound


@pytest.mark.parametrize("name", ["rectified_flow", "vp_cosine", "vp_linear_zero_snr"])
def test_inversion_ends_where_sampling_starts(name: str) -> None:
    denoiser, seen = ideal(name, "eps"), HeunSampler(200)
    assert torch.allclose(seen.invert(denoiser, exact(denoiser, NOISE)), NOISE, rtol=0, atol=2e-3)
    assert max(denoiser.asked) == denoiser.first_time


def test_inversion_asks_upwards_only_times_of_the_sampler_but_the_first() -> None:
    denoiser = ideal()
    EulerSampler(4).invert(denoiser, NOISE)
    assert denoiser.asked == pytest.approx([1e-3 / 1.001, 0.25, 0.5, 0.75])


def test_one_step_of_inversion_by_hand() -> None:
    # It starts at t = 1e-3 / 1.001, where latents are multiplied by 1 - t = 1 / 1.001, and the velocity is 0.3.
    noise = EulerSampler(1).invert(Linear(0.0, c=0.3), torch.ones(1, 1, 1, 1, dtype=torch.float64))
    assert noise.item() == pytest.approx(1 / 1.001 + 0.3 / 1.001, abs=1e-9)


def test_sampling_from_the_inversion_of_a_mixture_comes_back() -> None:
    denoiser = IdealDenoiser(Mixture(), RectifiedFlow())
    latents = Mixture().sample(50, torch.Generator().manual_seed(0))
    sampler = HeunSampler(300)
    assert torch.allclose(sampler(denoiser, sampler.invert(denoiser, latents)), latents, rtol=0, atol=0.02)


@pytest.mark.parametrize("sampler", [DDPMSampler(4), DDIMSampler(4, eta=0.1), DPMpp2MSampler(4, eta=0.1)])
def test_samplers_that_add_noise_refuse_to_be_inverted(sampler: Sampler) -> None:
    assert sampler.is_random
    with pytest.raises(UserError, match="sampler=heun"):
        sampler.invert(ideal(), NOISE)


@EVERY_SAMPLER
def test_hook_sees_what_each_step_has_come_to(kind: type[Sampler]) -> None:
    seen: list[tuple[float, Tensor]] = []

    def watch(x: Tensor, t: float) -> Tensor:
        seen.append((t, x.clone()))
        return x

    latents = kind(4).refine(ideal(), NOISE, 1.0, after_step=watch)
    assert [t for t, _ in seen] == [0.75, 0.5, 0.25, 0.0]
    assert torch.equal(seen[-1][1], latents)


@EVERY_SAMPLER
def test_steps_go_on_from_what_the_hook_has_made(kind: type[Sampler]) -> None:
    def restart(x: Tensor, t: float) -> Tensor:
        return NOISE if t == 0.5 else x

    def zero(x: Tensor, t: float) -> Tensor:
        return 0 * x if t == 0.0 else x

    torch.manual_seed(0)
    kept = kind(4).refine(ideal(), 10 * NOISE, 1.0, after_step=restart)
    assert kept.abs().max() < 3 * NOISE.abs().max()
    assert torch.equal(kind(4).refine(ideal(), NOISE, 1.0, after_step=zero), 0 * NOISE)


@EVERY_ODE_SAMPLER
@EVERY_SCHEDULE
def test_latents_do_not_depend_on_the_batch(kind: type[Sampler], name: str) -> None:
    noise, denoiser = normal(5, 2, 3, 3).float(), ideal(name)
    together = kind(6, shift=2.0)(denoiser, noise)
    alone = [kind(6, shift=2.0)(denoiser, noise[i : i + 1]) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))


def test_latents_of_ancestral_sampling_depend_on_their_own_fresh_noise_alone() -> None:
    noise, fresh = normal(5, 2, 3, 3).float(), normal(6, 5, 2, 3, 3, seed=1).float()
    draws = iter(fresh)
    together = DDPMSampler(6)(ideal(), noise, lambda: next(draws))
    draws = iter(fresh[:, 2:3])
    assert torch.equal(together[2:3], DDPMSampler(6)(ideal(), noise[2:3], lambda: next(draws)))


@EVERY_SAMPLER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_have_the_type_of_the_noise_which_is_left_as_it_was(kind: type[Sampler], dtype: torch.dtype) -> None:
    noise = torch.ones(1, 1, 2, 2, dtype=dtype, requires_grad=True)
    latents = kind(3)(ideal(), noise)
    assert torch.equal(noise, torch.ones(1, 1, 2, 2, dtype=dtype))
    assert latents.dtype == dtype
    assert not latents.requires_grad
    assert not kind(3).refine(ideal(), noise, 0.5).requires_grad
    assert kind(3).is_random or not kind(3).invert(ideal(), noise).requires_grad


@EVERY_ODE_SAMPLER
@EVERY_SCHEDULE
@EVERY_TARGET
def test_single_precision_is_enough(kind: type[Sampler], name: str, target: Target) -> None:
    denoiser, sampler = ideal(name, target), kind(20)
    off = sampler(denoiser, NOISE.float()).double() - sampler(denoiser, NOISE)
    assert off.abs().max() < 2e-5


@EVERY_SAMPLER
@pytest.mark.parametrize("num_steps", [0, -2])
def test_no_steps_are_refused(kind: Callable[..., Sampler], num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps={num_steps}"):
        kind(num_steps)


@EVERY_SAMPLER
@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_shift_that_is_not_above_zero_is_refused(kind: Callable[..., Sampler], shift: float) -> None:
    with pytest.raises(ValueError, match=f"shift={shift}"):
        kind(4, shift)


@pytest.mark.parametrize("kind", [DDIMSampler, DPMpp2MSampler])
@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_shares_of_fresh_noise_beyond_all_and_none_are_refused(
    kind: type[DDIMSampler | DPMpp2MSampler], eta: float
) -> None:
    with pytest.raises(ValueError, match=f"eta={eta}"):
        kind(4, eta=eta)
