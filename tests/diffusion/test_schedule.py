"""The rectified flow: t = 0 is data, t = 1 is noise, and every quantity comes back out of the others."""

import pytest
import torch
from torch import Tensor

from latentfaces.diffusion import RectifiedFlow

TIMES = torch.tensor([0.0, 0.125, 0.5, 0.875, 1.0], dtype=torch.float64)


@pytest.fixture
def x0() -> Tensor:
    """Return clean latents, one sample per time."""
    return torch.randn(len(TIMES), 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def noise() -> Tensor:
    """Return the noise to go with them."""
    return torch.randn(len(TIMES), 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_zero_is_data_and_one_is_noise(x0: Tensor, noise: Tensor) -> None:
    x_t = RectifiedFlow().add_noise(x0, noise, TIMES)
    assert torch.equal(x_t[0], x0[0])
    assert torch.equal(x_t[-1], noise[-1])


def test_alpha_and_sigma_are_the_shares_of_a_straight_line() -> None:
    schedule = RectifiedFlow()
    assert schedule.alpha(TIMES).tolist() == [1.0, 0.875, 0.5, 0.125, 0.0]
    assert schedule.sigma(TIMES).tolist() == [0.0, 0.125, 0.5, 0.875, 1.0]


def test_x_t_lies_on_the_line_between_data_and_noise(x0: Tensor, noise: Tensor) -> None:
    x_t = RectifiedFlow().add_noise(x0, noise, TIMES)
    assert torch.allclose(x_t[1], 0.875 * x0[1] + 0.125 * noise[1])


def test_velocity_points_from_data_to_noise(x0: Tensor, noise: Tensor) -> None:
    assert torch.equal(RectifiedFlow().velocity(x0, noise, TIMES), noise - x0)


def test_time_is_recovered_from_the_signal_to_noise_ratio() -> None:
    t = TIMES[1:-1]
    assert torch.allclose(1 / (1 + RectifiedFlow().snr(t).sqrt()), t)


def test_signal_to_noise_ratio_is_known_at_three_times() -> None:
    assert RectifiedFlow().snr(torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx([9.0, 1.0, 1 / 9])


def test_data_and_noise_come_back_from_the_velocity_at_every_time(x0: Tensor, noise: Tensor) -> None:
    schedule = RectifiedFlow()
    x_t, v = schedule.add_noise(x0, noise, TIMES), schedule.velocity(x0, noise, TIMES)
    assert torch.allclose(schedule.x0_from_velocity(x_t, v, TIMES), x0, rtol=0, atol=1e-14)
    assert torch.allclose(schedule.noise_from_velocity(x_t, v, TIMES), noise, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["alpha", "sigma"])
def test_derivatives_are_those_of_autograd(name: str) -> None:
    schedule, t = RectifiedFlow(), TIMES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(schedule, name)(t).sum(), t)
    assert torch.equal(getattr(schedule, f"{name}_derivative")(TIMES), gradient)


def test_velocity_is_the_derivative_of_the_noised_latents(x0: Tensor, noise: Tensor) -> None:
    schedule, t, weights = RectifiedFlow(), TIMES.clone().requires_grad_(), torch.randn_like(x0)
    (gradient,) = torch.autograd.grad((weights * schedule.add_noise(x0, noise, t)).sum(), t)
    assert torch.allclose(gradient, (weights * schedule.velocity(x0, noise, TIMES)).sum((1, 2, 3)))
