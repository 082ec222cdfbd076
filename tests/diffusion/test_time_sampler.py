"""Times of training: quantiles in closed form, and one time from each slice of a batch."""

import math

import pytest
import torch
from helpers.closed_forms import SCHEDULES, double
from torch.distributions import Normal

from latentfaces.diffusion import EDM, LogitNormalTime, LogNormalNoise, RectifiedFlow, TimeSampler, UniformTime

FLOW = RectifiedFlow()
U = double(0.001, 0.1, 0.5, 0.75, 0.999)
SPREADS = pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.7), (1.2, 2.0)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_uniform_and_logit_normal_times_lie_on_the_even_scale_of_the_schedule(name: str) -> None:
    condition, end = SCHEDULES[name].condition, SCHEDULES[name].condition(double(1.0))
    assert torch.allclose(condition(UniformTime().from_uniform(U, SCHEDULES[name])), end * U)
    t = LogitNormalTime(0.3, 0.8).from_uniform(U, SCHEDULES[name])
    assert torch.allclose(torch.logit(condition(t) / end), Normal(0.3, 0.8).icdf(U), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormalTime(0.0, 3.0)], ids=["uniform", "logit_normal"])
def test_no_two_quantiles_share_the_last_time(name: str, sampler: TimeSampler) -> None:
    t = sampler.from_uniform(double(0.99, 0.993, 0.996, 0.999), SCHEDULES[name])
    assert (t.diff() > 0).all()
    assert t.max() < 1


def test_uniform_time_is_t_itself_except_for_edm() -> None:
    assert torch.equal(UniformTime().from_uniform(U, FLOW), U)
    end = EDM().condition(double(1.0))
    sigma = EDM().sigma(UniformTime().from_uniform(double(0.5, 1 / 3) / end, EDM()))
    assert sigma.tolist() == pytest.approx([1, 3**-0.5])


@SPREADS
def test_logit_normal_has_the_analytic_quantiles(mean: float, std: float) -> None:
    t = LogitNormalTime(mean, std).from_uniform(U, FLOW)
    assert torch.allclose(t, torch.sigmoid(Normal(mean, std).icdf(U)), atol=1e-6)
    one_sigma = LogitNormalTime(mean, std).from_uniform(double(0.15865525393145707, 0.5, 0.8413447460685429), FLOW)
    assert torch.logit(one_sigma).tolist() == pytest.approx([mean - std, mean, mean + std])


def test_logit_normal_of_mean_zero_is_symmetric_about_one_half() -> None:
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    t = LogitNormalTime(0.0, 1.3).from_uniform(u, FLOW)
    assert torch.allclose(t + t.flip(0), torch.ones_like(t), atol=1e-12)


@pytest.mark.parametrize("kind", [LogitNormalTime, LogNormalNoise])
def test_higher_mean_asks_more_of_noisy_times(kind: type[LogitNormalTime | LogNormalNoise]) -> None:
    u = torch.linspace(0.01, 0.99, 99)
    assert (kind(1.0).from_uniform(u, FLOW) > kind(0.0).from_uniform(u, FLOW)).all()


@pytest.mark.parametrize(
    ("shape", "shift"), [((4, 16, 16), 1), ((4, 32, 32), 1), ((16, 32, 32), 2), ((32, 64, 64), math.sqrt(32))]
)
def test_automatic_mean_shifts_times_by_the_size_of_the_latents(shape: tuple[int, ...], shift: float) -> None:
    # Esser et al. 2024, eq. 23
    t = LogitNormalTime(0.0, 0.8).from_uniform(U, FLOW)
    shifted = LogitNormalTime("auto", 0.8).sized(shape).from_uniform(U, FLOW)
    assert torch.allclose(shifted, shift * t / (1 + (shift - 1) * t), atol=1e-12)


def test_other_distributions_do_not_depend_on_the_size() -> None:
    for sampler in (UniformTime(), LogNormalNoise(), LogitNormalTime(0.3)):
        assert sampler.sized((32, 64, 64)) is sampler


@SPREADS
def test_log_normal_noise_is_logit_normal_time_on_a_rectified_flow(mean: float, std: float) -> None:
    u = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    noise, time = LogNormalNoise(mean, std).from_uniform(u, FLOW), LogitNormalTime(mean, std).from_uniform(u, FLOW)
    assert torch.allclose(noise, time, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_over_data_is_log_normal_in_every_schedule(name: str) -> None:
    t = LogNormalNoise(-0.7, 0.9).from_uniform(U, SCHEDULES[name])
    assert torch.allclose(SCHEDULES[name].ratio(t).log(), Normal(-0.7, 0.9).icdf(U), rtol=0, atol=1e-6)


def test_default_noise_is_that_of_edm2_for_data_of_one_half() -> None:
    one_sigma = double(0.15865525393145707, 0.5, 0.8413447460685429)
    sigma = 0.5 * EDM().sigma(LogNormalNoise().from_uniform(one_sigma, EDM()))
    assert sigma.log().tolist() == pytest.approx([-0.4 - 1.0, -0.4, -0.4 + 1.0], abs=0.01)


def test_noise_beyond_the_schedule_is_its_end() -> None:
    assert LogNormalNoise(mean=math.log(1000)).from_uniform(double(0.5), EDM()).item() == 1.0


def test_a_batch_takes_one_time_from_each_slice() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        assert (16 * UniformTime()(16, FLOW)).floor().tolist() == list(range(16))


def test_batch_is_stratified_in_the_quantiles_of_each_distribution() -> None:
    torch.manual_seed(0)
    u = torch.special.ndtr((torch.logit(LogitNormalTime(0.5, 2.0)(10, FLOW)) - 0.5) / 2.0)
    assert (10 * u).floor().tolist() == list(range(10))
    u = torch.special.ndtr((EDM().sigma(LogNormalNoise(0.5, 1.0)(10, EDM())).log() - 0.5) / 1.0)
    assert (10 * u).floor().tolist() == list(range(10))


def test_times_within_a_slice_are_uniform() -> None:
    torch.manual_seed(0)
    within = torch.stack([16 * UniformTime()(16, FLOW) % 1 for _ in range(500)])
    assert within.mean().item() == pytest.approx(1 / 2, abs=4 / math.sqrt(12 * 8000))
    assert within.var().item() == pytest.approx(1 / 12, abs=4 / math.sqrt(180 * 8000))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "sampler",
    [UniformTime(), LogitNormalTime(0.0, 3.0), LogNormalNoise()],
    ids=["uniform", "logit_normal", "log_normal"],
)
def test_drawn_times_differ_and_stay_within_the_ends(name: str, sampler: TimeSampler) -> None:
    torch.manual_seed(0)
    first, second = sampler(1000, SCHEDULES[name]), sampler(1000, SCHEDULES[name])
    assert first.shape == (1000,)
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    assert torch.cat([first, second]).min() > 0
    assert torch.cat([first, second]).max() <= 1


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormalTime(), LogNormalNoise(), LogNormalNoise(std=5.0)])
def test_the_ends_are_never_drawn(name: str, sampler: TimeSampler) -> None:
    first, last = sampler.inside(torch.tensor([0.0, 1.0]), SCHEDULES[name]).tolist()
    assert 0 < first < last < 1
