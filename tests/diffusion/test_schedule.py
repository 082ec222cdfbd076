"""Noise schedules: known values, and every quantity comes back out of the others."""

import itertools
import math

import pytest
import torch
from helpers.closed_forms import SCHEDULES, VARIANCE_PRESERVING, double, normal
from torch import Tensor

from latentfaces.diffusion import EDM, NoiseSchedule, RectifiedFlow, VPCosine, VPLinear

INSIDE = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
EVERY = pytest.mark.parametrize("name", SCHEDULES)
EVERY_VP = pytest.mark.parametrize("name", VARIANCE_PRESERVING)


@EVERY
def test_zero_is_data(name: str) -> None:
    x0, noise = normal(1, 2, 3, 3), normal(1, 2, 3, 3, seed=1)
    assert torch.equal(SCHEDULES[name].add_noise(x0, noise, double(0.0)), x0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["rectified_flow", "vp_cosine", "vp_linear_zero_snr"])
def test_one_is_noise_alone(name: str, dtype: torch.dtype) -> None:
    one = torch.ones(1, dtype=dtype)
    assert SCHEDULES[name].alpha(one).item() == 0
    assert SCHEDULES[name].sigma(one).item() == 1
    assert SCHEDULES[name].ratio(one).item() == math.inf


def test_noised_latents_are_the_shares_of_data_and_noise_of_each_sample() -> None:
    x0, noise = normal(2, 2, 3, 3), normal(2, 2, 3, 3, seed=1)
    x_t = RectifiedFlow().add_noise(x0, noise, double(0.125, 0.75))
    assert torch.allclose(x_t[0], 0.875 * x0[0] + 0.125 * noise[0])
    assert torch.allclose(x_t[1], 0.25 * x0[1] + 0.75 * noise[1])


@pytest.mark.parametrize(
    ("schedule", "t", "alpha", "sigma"),
    [
        (RectifiedFlow(), 0.125, 0.875, 0.125),
        (RectifiedFlow(), 1.0, 0.0, 1.0),
        (VPCosine(), 1 / 3, math.sqrt(3) / 2, 1 / 2),
        (VPCosine(), 1 / 2, math.sqrt(1 / 2), math.sqrt(1 / 2)),
        (VPLinear(), 0.5, 0.28118, 0.95966),  # alpha^2 = exp(-(0.1 / 2 + 19.9 / 8))
        (VPLinear(), 1.0, math.exp(-5.025), math.sqrt(1 - math.exp(-10.05))),
        (VPLinear(0.2, 1.8), 1.0, math.exp(-0.5), math.sqrt(1 - math.exp(-1))),
        (EDM(), 0.5, 1.0, 40.0),
        (EDM(sigma_max=8), 1.0, 1.0, 8.0),
    ],
)
def test_alpha_and_sigma_are_known_at_a_few_times(
    schedule: NoiseSchedule, t: float, alpha: float, sigma: float
) -> None:
    assert schedule.alpha(double(t)).item() == pytest.approx(alpha, abs=1e-5)
    assert schedule.sigma(double(t)).item() == pytest.approx(sigma, abs=1e-5)


def ddpm_alphas(num_steps: int) -> Tensor:
    """Square roots of the products of 1 - beta of Ho et al. 2020, their 1000 steps made `num_steps`."""
    betas = torch.linspace(0.1, 20.0, num_steps, dtype=torch.float64) / num_steps
    return (1 - betas).cumprod(0).sqrt()


@pytest.mark.parametrize(("num_steps", "tolerance"), [(1000, 0.01), (100_000, 1e-4)])
def test_linear_betas_are_those_of_ddpm_in_the_limit_of_many_steps(num_steps: int, tolerance: float) -> None:
    t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    off = (VPLinear().alpha(t).log() / ddpm_alphas(num_steps).log())[num_steps // 10 :] - 1
    assert off.abs().max() < tolerance
    assert (VPLinear().alpha(t) - ddpm_alphas(num_steps)).abs().max() < tolerance / 2


def test_zero_terminal_snr_is_the_algorithm_of_lin_et_al() -> None:
    plain = VPLinear(0.3, 12.0).alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    first, last = plain[0], plain[-1]
    expected = (plain - last) * first / (first - last)
    rescaled = VPLinear(0.3, 12.0, zero_terminal_snr=True).alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert torch.allclose(rescaled, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta_min", [0.05, 0.22, 0.53, 0.97])
@pytest.mark.parametrize("beta_max", [3.0, 5.0, 9.0, 20.0])
def test_data_have_no_negative_share_where_the_end_is_rounded(
    beta_min: float, beta_max: float, dtype: torch.dtype
) -> None:
    one = torch.ones(1, dtype=dtype)
    schedule = VPLinear(beta_min, beta_max, zero_terminal_snr=True)
    assert 0 <= schedule.alpha(one).item() < 1e-6
    assert schedule.ratio(one).item() > 1e6


@EVERY_VP
def test_variance_is_preserved(name: str) -> None:
    schedule = SCHEDULES[name]
    assert torch.allclose(schedule.alpha(INSIDE) ** 2 + schedule.sigma(INSIDE) ** 2, torch.ones_like(INSIDE))
    assert torch.allclose(schedule.std(INSIDE), torch.ones_like(INSIDE))


def test_deviation_is_that_of_data_and_noise_together() -> None:
    assert RectifiedFlow().std(double(0.0, 0.5, 1.0)).tolist() == pytest.approx([1, math.sqrt(0.5), 1])
    assert EDM().std(double(0.0, 3 / 80)).tolist() == pytest.approx([1, math.sqrt(10)])


@EVERY
@pytest.mark.parametrize("share", ["alpha", "sigma"])
def test_derivatives_are_those_of_autograd(name: str, share: str) -> None:
    schedule, t = SCHEDULES[name], INSIDE.clone().requires_grad_()
    value = getattr(schedule, share)(t)
    (gradient,) = torch.autograd.grad((value + 0 * t).sum(), t)
    assert torch.allclose(getattr(schedule, f"{share}_derivative")(INSIDE), gradient, rtol=1e-9, atol=1e-12)


@EVERY
def test_time_is_recovered_from_the_ratio_of_noise_to_data(name: str) -> None:
    schedule = SCHEDULES[name]
    assert torch.allclose(schedule.time_at(schedule.ratio(INSIDE)), INSIDE, rtol=1e-12, atol=1e-13)
    single = INSIDE.float()
    assert torch.allclose(schedule.time_at(schedule.ratio(single)), single, rtol=1e-5, atol=0)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratio_is_recovered_from_the_time_over_six_decades(name: str, dtype: torch.dtype) -> None:
    schedule, ratio = SCHEDULES[name], torch.logspace(-4, 1.5, 50, dtype=dtype)
    assert torch.allclose(schedule.ratio(schedule.time_at(ratio)), ratio, rtol=1e-3 if dtype == torch.float32 else 1e-9)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_of_zero_and_of_more_than_there_is_give_the_ends(name: str, dtype: torch.dtype) -> None:
    ratio = torch.tensor([0.0, 1e12, math.inf], dtype=dtype)
    assert SCHEDULES[name].time_at(ratio).tolist() == pytest.approx([0, 1, 1], abs=1e-6)


@EVERY
def test_signal_to_noise_ratio_falls_and_is_the_square_of_data_over_noise(name: str) -> None:
    snr = SCHEDULES[name].snr(INSIDE)
    assert all(later < earlier for earlier, later in itertools.pairwise(snr.tolist()))
    assert torch.allclose(snr * SCHEDULES[name].ratio(INSIDE) ** 2, torch.ones_like(snr))


@pytest.mark.parametrize(
    ("schedule", "times", "expected"),
    [
        (RectifiedFlow(), (0.25, 0.5, 0.75), (9, 1, 1 / 9)),
        (VPCosine(), (1 / 3, 1 / 2, 2 / 3), (3, 1, 1 / 3)),
        (EDM(), (1 / 80, 1 / 8, 1), (1, 1 / 100, 1 / 6400)),
    ],
)
def test_signal_to_noise_ratio_is_known_at_three_times(
    schedule: NoiseSchedule, times: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    assert schedule.snr(double(*times)).tolist() == pytest.approx(list(expected))


@EVERY_VP
def test_v_is_that_of_salimans_and_ho(name: str) -> None:
    schedule = SCHEDULES[name]
    on_x0, on_noise = schedule.v_coefficients(INSIDE)
    assert torch.allclose(on_x0, -schedule.sigma(INSIDE))
    assert torch.allclose(on_noise, schedule.alpha(INSIDE))


def test_v_of_a_rectified_flow_is_noise_less_data() -> None:
    on_x0, on_noise = RectifiedFlow().v_coefficients(INSIDE)
    assert torch.equal(on_x0, -torch.ones_like(INSIDE))
    assert torch.equal(on_noise, torch.ones_like(INSIDE))


@pytest.mark.parametrize(("schedule", "speed"), [(RectifiedFlow(), 1.0), (VPCosine(), math.pi / 2)])
def test_v_points_along_the_path_of_the_noised_latents(schedule: NoiseSchedule, speed: float) -> None:
    x0, noise, directions = (normal(5, 1, 2, 2, seed=seed) for seed in range(3))
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64).requires_grad_()
    (along,) = torch.autograd.grad((directions * schedule.add_noise(x0, noise, t)).sum(), t)
    on_x0, on_noise = (c.view(5, 1, 1, 1) for c in schedule.v_coefficients(t))
    assert torch.allclose(along, (directions * speed * (on_x0 * x0 + on_noise * noise)).sum((1, 2, 3)))


def test_edm_shows_networks_latents_of_deviation_one_and_a_scale_of_the_noise() -> None:
    t = INSIDE
    assert torch.allclose(EDM().input_scale(t), 1 / (1 + (80 * t) ** 2).sqrt())  # c_in of Karras et al., table 1
    angle = math.pi / 2 * EDM().condition(t)
    assert torch.allclose(angle.tan(), 80 * t)
    assert EDM().condition(double(0.0, 1 / 80)).tolist() == pytest.approx([0, 0.5])
    assert EDM().condition(t).max() < 1


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "edm"])
def test_other_schedules_show_networks_the_latents_and_the_time_as_they_are(name: str) -> None:
    assert torch.equal(SCHEDULES[name].input_scale(INSIDE), torch.ones_like(INSIDE))
    assert torch.equal(SCHEDULES[name].condition(INSIDE), INSIDE)


@EVERY
def test_time_is_recovered_from_what_networks_are_told_of_it(name: str) -> None:
    schedule = SCHEDULES[name]
    assert torch.allclose(schedule.time_of(schedule.condition(INSIDE)), INSIDE, rtol=1e-12, atol=0)
    assert schedule.time_of(double(0.0, 1.0)).tolist() == [0.0, 1.0]


@EVERY
def test_shares_and_their_derivatives_are_exact_in_float32_also_near_the_data(name: str) -> None:
    t = torch.logspace(-5, -1, 30)
    for share in ("alpha", "sigma", "ratio", "alpha_derivative", "sigma_derivative"):
        function = getattr(SCHEDULES[name], share)
        assert torch.allclose(function(t).double(), function(t.double()), rtol=1e-5, atol=0), share


@pytest.mark.parametrize("betas", [(0.0, 20.0), (-1.0, 20.0), (5.0, 5.0), (6.0, 5.0)])
def test_betas_that_do_not_rise_from_above_zero_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"beta_min={betas[0]} .* beta_max={betas[1]}"):
        VPLinear(*betas)
