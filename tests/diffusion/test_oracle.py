"""Compare samplers with those of diffusers, if it is installed: same network, noise and trajectory."""

from collections.abc import Callable

import pytest
import torch
from helpers.closed_forms import normal
from torch import Tensor, nn

from latentfaces.diffusion import DDIMSampler, Denoiser, DPMpp2MSampler, EulerSampler, RectifiedFlow, Sampler, Target
from latentfaces.diffusion.schedule import NoiseSchedule

diffusers = pytest.importorskip("diffusers")

NOISE = normal(2, 3, 4, 4).float()
PREDICTIONS: list[tuple[Target, str]] = [("v", "v_prediction"), ("eps", "epsilon"), ("x0", "sample")]
EVERY_PREDICTION = pytest.mark.parametrize(("target", "prediction_type"), PREDICTIONS)


class SmallNetwork(nn.Module):
    """(x_t, t (b,)) -> something of the size of a prediction, that depends on both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.conv(x_t)) * (1 + torch.cos(3 * t))[:, None, None, None]


class DiscreteSchedule(NoiseSchedule):
    """The products of 1 - beta of a scheduler of diffusers: its step k is our t = (k + 1) / 1000."""

    def __init__(self, products: Tensor) -> None:
        self.products = torch.cat([torch.ones(1, dtype=torch.float64), products.double()])

    def product(self, t: Tensor) -> Tensor:
        """Alpha^2 at t."""
        return self.products[(1000 * t).round().long()]

    def alpha(self, t: Tensor) -> Tensor:
        return self.product(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.product(t)).sqrt()

    def alpha_derivative(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def sigma_derivative(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def time_at(self, ratio: Tensor) -> Tensor:
        raise NotImplementedError


def ours(sampler: Sampler, denoiser: Denoiser, fresh: Callable[[], Tensor] | None = None) -> list[Tensor]:
    """x after each step."""
    trajectory = []

    def watch(x: Tensor, t: float) -> Tensor:
        trajectory.append(x)
        return x

    sampler.refine(denoiser, NOISE, 1.0, fresh, watch)
    return trajectory


def assert_same(trajectory: list[Tensor], expected: list[Tensor]) -> None:
    """Each step alike to 1e-5 of the largest value."""
    assert len(trajectory) == len(expected)
    for step, (x, y) in enumerate(zip(trajectory, expected, strict=True)):
        assert (x - y).abs().max() < 1e-5 * y.abs().max().clamp(min=1), step


@EVERY_PREDICTION
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_ddim_is_that_of_diffusers(target: Target, prediction_type: str, eta: float, num_steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(num_steps)
    network, fresh = SmallNetwork(), normal(num_steps, *NOISE.shape, seed=1).float()
    x, expected = NOISE, []
    for k, draw in zip(scheduler.timesteps, fresh, strict=True):
        prediction = network(x, torch.full((2,), (k + 1) / 1000))
        x = scheduler.step(prediction, k, x, eta=eta, variance_noise=draw if eta else None).prev_sample
        expected.append(x)
    denoiser = Denoiser(network, DiscreteSchedule(scheduler.alphas_cumprod), target)
    assert_same(ours(DDIMSampler(num_steps, eta=eta), denoiser, iter(fresh).__next__), expected)


@EVERY_PREDICTION
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 20])
def test_dpm_solver_is_that_of_diffusers(target: Target, prediction_type: str, eta: float, num_steps: int) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        solver_order=2,
        lower_order_final=True,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(num_steps)
    network, fresh = SmallNetwork(), normal(num_steps, *NOISE.shape, seed=1).float()
    x, expected = NOISE, []
    for k, draw in zip(scheduler.timesteps, fresh, strict=True):
        prediction = network(x, torch.full((2,), (k + 1) / 1000))
        x = scheduler.step(prediction, k, x, variance_noise=draw if eta else None).prev_sample
        expected.append(x)
    denoiser = Denoiser(network, DiscreteSchedule(scheduler.alphas_cumprod), target)
    assert_same(ours(DPMpp2MSampler(num_steps, eta=eta), denoiser, iter(fresh).__next__), expected)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_euler_with_a_shift_is_flow_matching_of_diffusers(shift: float, num_steps: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - step / num_steps for step in range(num_steps)])
    network, x, expected = SmallNetwork(), NOISE, []
    for timestep in scheduler.timesteps:
        x = scheduler.step(network(x, torch.full((2,), timestep / 1000)), timestep, x).prev_sample
        expected.append(x)
    assert_same(ours(EulerSampler(num_steps, shift), Denoiser(network, RectifiedFlow())), expected)
