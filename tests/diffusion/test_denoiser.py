"""A network as a denoiser: what its prediction says of the data and of the noise, in every schedule and target."""

import math
from typing import Any

import pytest
import torch
from helpers.closed_forms import SCHEDULES, TARGETS, IdealDenoiser, Mixture, double, gaussian, normal
from torch import Tensor, nn

from latentfaces.diffusion import (
    EDM,
    Denoiser,
    LogitNormalTime,
    LogNormalNoise,
    RectifiedFlow,
    Target,
    TimeSampler,
    UniformTime,
    VPLinear,
)
from latentfaces.diffusion.schedule import per_sample

TIMES = double(0.01, 0.3, 0.7, 0.97)
EVERY_PAIR = [
    pytest.param(name, target, id=f"{name}-{target}") for name in SCHEDULES for target in TARGETS
]  # schedule x target
PAIRS = pytest.mark.parametrize(("name", "target"), EVERY_PAIR)


class Spy(nn.Module):
    """A network that keeps what it sees and says it back in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: tuple[Tensor, ...] = ()

    def forward(self, x_t: Tensor, *rest: Tensor) -> Tensor:
        self.seen = (x_t, *rest)
        return x_t.bfloat16()


class TwoHeads(Spy):
    """A network with an auxiliary head, which says half of what the other says."""

    auxiliary_depth = 1

    def heads(self, x_t: Tensor, *rest: Tensor) -> list[Tensor]:
        return [self(x_t, *rest), 0.5 * self(x_t, *rest)]


class StepSpy(Spy):
    """A network that also takes the length of a step."""

    embed_step = True

    def forward(self, x_t: Tensor, *rest: Tensor, step: Tensor) -> Tensor:
        return super().forward(x_t, *rest, step)


@PAIRS
def test_data_and_noise_come_back_from_the_target(name: str, target: Target) -> None:
    denoiser = Denoiser(Spy(), SCHEDULES[name], target)
    x0, noise = normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    x_t, prediction = denoiser.schedule.add_noise(x0, noise, TIMES), denoiser.target_of(x0, noise, TIMES)
    for expected, coefficients in ((x0, denoiser.x0_coefficients(TIMES)), (noise, denoiser.noise_coefficients(TIMES))):
        on_x, on_prediction = map(per_sample, coefficients)
        assert torch.allclose(on_x * x_t + on_prediction * prediction, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_targets_are_what_their_names_say(name: str) -> None:
    x0, noise = normal(4, 1, 2, 2), normal(4, 1, 2, 2, seed=1)
    assert torch.equal(Denoiser(Spy(), SCHEDULES[name], "eps").target_of(x0, noise, TIMES), noise)
    assert torch.equal(Denoiser(Spy(), SCHEDULES[name], "x0").target_of(x0, noise, TIMES), x0)
    on_x0, on_noise = map(per_sample, SCHEDULES[name].v_coefficients(TIMES))
    v = Denoiser(Spy(), SCHEDULES[name], "v").target_of(x0, noise, TIMES)
    assert torch.equal(v, on_x0 * x0 + on_noise * noise)


def test_v_of_edm_is_minus_the_target_of_karras_et_al() -> None:
    sigma, x0, noise = double(0.01, 0.5, 3.0, 60.0), normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    c_skip, c_out, c_in = 1 / (sigma**2 + 1), sigma / (sigma**2 + 1).sqrt(), 1 / (sigma**2 + 1).sqrt()
    x, t = x0 + per_sample(sigma) * noise, sigma / 80
    network = Spy()
    target = Denoiser(network, EDM()).target_of(x0, noise, t)
    assert torch.allclose(target, -(x0 - per_sample(c_skip) * x) / per_sample(c_out))
    Denoiser(network, EDM())(x, t)
    assert torch.allclose(network.seen[0], per_sample(c_in) * x)


@PAIRS
def test_predicted_data_are_the_mean_of_all_that_could_have_been(name: str, target: Target) -> None:
    mixture, schedule, x_t = Mixture(), SCHEDULES[name], normal(4, 2, 1, 1)
    mean = mixture(x_t, per_sample(schedule.alpha(TIMES)), per_sample(schedule.sigma(TIMES)))
    assert torch.allclose(IdealDenoiser(mixture, schedule, target).predict_x0(x_t, TIMES), mean, rtol=0, atol=1e-9)


def test_posterior_mean_of_a_mixture_is_that_of_a_naive_sum_over_its_samples() -> None:
    samples, alpha, sigma = Mixture().sample(200_000, torch.Generator().manual_seed(0)).flatten(1), 0.8, 0.6
    x_t = torch.tensor([[0.3, 0.2], [-0.5, -0.3]], dtype=torch.float64)
    likelihood = torch.exp(-(x_t[:, None] - alpha * samples).square().sum(-1) / (2 * sigma**2))
    naive = (likelihood[..., None] * samples).sum(1) / likelihood.sum(1, keepdim=True)
    mean = Mixture()(x_t[..., None, None], per_sample(double(alpha, alpha)), per_sample(double(sigma, sigma)))
    assert torch.allclose(mean.flatten(1), naive, atol=0.01)


@pytest.mark.parametrize("target", ["v", "x0"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_sampling_starts_at_one_where_the_prediction_tells_the_data(name: str, target: Target) -> None:
    denoiser = IdealDenoiser(gaussian(0.5), SCHEDULES[name], target)
    assert denoiser.first_time == 1.0
    assert all(torch.isfinite(c).all() for c in denoiser.x0_coefficients(double(1.0)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rectified_flow", 20 / 21),
        ("vp_cosine", 0.956),
        ("edm", 1.0),
    ],
)
def test_eps_starts_where_training_times_reach(name: str, expected: float) -> None:
    assert Denoiser(Spy(), SCHEDULES[name], "eps").first_time == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("betas", [(0.1, 20.0), (0.05, 3.0), (0.67, 2.0)])  # alpha of the last two rounds to above 0
def test_eps_with_zero_terminal_snr_starts_where_training_times_reach(betas: tuple[float, float]) -> None:
    denoiser = Denoiser(Spy(), VPLinear(*betas, zero_terminal_snr=True), "eps")
    assert 14 < denoiser.schedule.ratio(double(denoiser.first_time)).item() < 20 + 1e-9
    assert denoiser.first_time <= 0.956


@pytest.mark.parametrize("betas", [(0.1, 20.0), (0.1, 40.0)])
def test_eps_never_starts_beyond_a_ratio_of_150(betas: tuple[float, float]) -> None:
    denoiser = Denoiser(Spy(), VPLinear(*betas), "eps")
    assert denoiser.schedule.ratio(double(denoiser.first_time)).item() == pytest.approx(150)


@pytest.mark.parametrize("time_sampler", [UniformTime(), LogitNormalTime(), LogNormalNoise()])
@pytest.mark.parametrize("name", ["rectified_flow", "vp_cosine", "vp_linear_zero_snr"])
def test_default_time_samplers_reach_the_start_of_sampling(name: str, time_sampler: TimeSampler) -> None:
    denoiser = Denoiser(Spy(), SCHEDULES[name], "eps")
    assert time_sampler.from_uniform(double(0.999), denoiser.schedule).item() >= denoiser.first_time


def test_network_sees_the_time_and_the_condition_of_each_sample() -> None:
    network, t, condition = Spy(), torch.tensor([0.0, 1 / 80]), torch.rand(2, 8)
    denoiser = Denoiser(network, EDM())
    denoiser(torch.ones(2, 1, 2, 2), t)
    assert len(network.seen) == 2
    assert network.seen[1].tolist() == pytest.approx([0.0, 0.5])
    denoiser(torch.ones(2, 1, 2, 2), t, condition)
    assert torch.equal(network.seen[2], condition)


def test_a_condition_with_too_many_entries_is_rejected() -> None:
    network: Any = Spy()
    network.label_channels = 3
    denoiser = Denoiser(network, EDM())
    denoiser(torch.ones(2, 1, 2, 2), torch.zeros(2), torch.ones(2, 2))
    assert network.seen[2].tolist() == [[0, 1, 1], [0, 1, 1]]  # labels come last
    with pytest.raises(ValueError, match="a condition of 5 entries has 2 more than the network takes"):
        denoiser(torch.ones(2, 1, 2, 2), torch.zeros(2), torch.ones(2, 5))


def test_a_flow_map_sees_the_length_of_each_step_on_the_even_scale() -> None:
    network, t_next = StepSpy(), torch.tensor([0.0, math.tan(math.pi / 8) / 80])
    Denoiser(network, EDM())(torch.ones(2, 1, 2, 2), torch.full((2,), 1 / 80), None, t_next)
    assert network.seen[-1].tolist() == pytest.approx([0.5, 0.25])  # from 1/2 to 0 and to 1/4


def test_a_denoiser_for_a_condition_is_a_copy_that_shares_the_network() -> None:
    denoiser = Denoiser(Spy(), RectifiedFlow())
    given = denoiser.given(torch.ones(1, 3))
    assert denoiser.condition is None
    assert given.network is denoiser.network
    given.predict(torch.ones(2, 1, 2, 2), 0.5)
    assert torch.equal(denoiser.network.seen[2], torch.ones(2, 3))


def test_labels_without_parameters_of_the_augmentation_follow_zeros() -> None:
    network = Spy()
    network.label_channels = 5
    Denoiser(network, RectifiedFlow())(torch.ones(1, 1, 2, 2), torch.ones(1), torch.tensor([[1.0, 2.0]]))
    assert network.seen[2].tolist() == [[0, 0, 0, 1, 2]]


def test_all_samples_of_a_prediction_have_the_time_that_is_asked_for() -> None:
    network, x_t = Spy(), torch.ones(3, 1, 2, 2)
    assert torch.equal(Denoiser(network, RectifiedFlow()).predict(x_t, 0.3), x_t)
    assert torch.equal(network.seen[1], torch.full((3,), 0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("network", [Spy(), TwoHeads()])
def test_predictions_have_the_type_of_the_latents_whatever_the_network_computes_in(
    network: nn.Module, dtype: torch.dtype
) -> None:
    denoiser, x_t = Denoiser(network, EDM()), torch.ones(1, 1, 2, 2, dtype=dtype)
    assert denoiser.predict(x_t, 0.3).dtype == dtype
    assert [head.dtype for head in denoiser.heads(x_t, torch.ones(1))] == [dtype] * len(
        denoiser.heads(x_t, torch.ones(1))
    )


def test_network_without_an_auxiliary_head_has_one_head() -> None:
    denoiser, x_t = Denoiser(Spy(), RectifiedFlow()), torch.ones(1, 1, 2, 2)
    assert not denoiser.has_auxiliary
    (head,) = denoiser.heads(x_t, torch.ones(1))
    assert torch.equal(head, denoiser(x_t, torch.ones(1)))


def test_auxiliary_head_comes_second_and_sees_what_the_other_sees() -> None:
    denoiser, x_t, t, condition = Denoiser(TwoHeads(), EDM()), torch.ones(1, 1, 2, 2), torch.ones(1), torch.rand(1, 3)
    assert denoiser.has_auxiliary
    stronger, weaker = denoiser.heads(x_t, t, condition)
    assert torch.equal(stronger, denoiser(x_t, t, condition))
    assert torch.equal(weaker, 0.5 * stronger)
    assert torch.equal(denoiser.network.seen[2], condition)
