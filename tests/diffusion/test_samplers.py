"""Solvers on an ODE with a closed form: data N(0, s^2), where x0 = s x1."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentfaces.diffusion import EulerSampler, HeunSampler, Sampler

S = 0.5
SAMPLERS = [EulerSampler, HeunSampler]


def gaussian_velocity(x: Tensor, t: Tensor) -> Tensor:
    """The ideal denoiser of data N(0, S^2)."""
    t = t[:, None, None, None]
    return x * (t - (1 - t) * S**2) / ((1 - t) ** 2 * S**2 + t**2)


def error(sampler: Sampler) -> float:
    """Largest distance from the exact map on a few noises."""
    noise = torch.tensor([-2.0, 0.3, 1.0], dtype=torch.float64).view(3, 1, 1, 1)
    return (sampler(gaussian_velocity, noise) - S * noise).abs().max().item()


@pytest.mark.parametrize(("kind", "order"), [(EulerSampler, 1), (HeunSampler, 2)])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_error_falls_with_the_order_of_the_solver(kind: type[Sampler], order: int, shift: float) -> None:
    slope = math.log2(error(kind(128, shift)) / error(kind(512, shift))) / 2
    assert slope == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(("kind", "bound"), [(EulerSampler, 0.01), (HeunSampler, 1e-4)])
def test_many_steps_end_at_the_exact_latents(kind: type[Sampler], bound: float) -> None:
    assert error(kind(256)) < bound


def test_second_order_is_worth_its_second_evaluation() -> None:
    assert error(HeunSampler(16)) < 0.5 * error(EulerSampler(32))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_one_step_follows_the_first_velocity_all_the_way(kind: type[Sampler]) -> None:
    noise = torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
    # v = 2 x + 3 t at t = 1, followed for a time of -1: x - (2 x + 3).
    latents = kind(1)(lambda x, t: 2 * x + 3 * t[:, None, None, None], noise)
    assert latents.flatten().tolist() == [-4.0, -7.0]


def test_two_euler_steps_by_hand() -> None:
    # v = x: 1 -> 1 - 1/2 = 1/2 -> 1/2 - 1/4 = 1/4.
    assert EulerSampler(2)(lambda x, t: x, torch.ones(1, 1, 1, 1)).item() == 0.25


def test_two_heun_steps_by_hand() -> None:
    # v = x: a trapezium of 1 and 1/2 gives 1 - 1/2 * 3/4 = 5/8; the last step is Euler's: 5/8 - 5/16 = 5/16.
    assert HeunSampler(2)(lambda x, t: x, torch.ones(1, 1, 1, 1)).item() == 0.3125


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 3, 7])
def test_constant_velocity_is_followed_exactly(kind: type[Sampler], num_steps: int) -> None:
    noise = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    latents = kind(num_steps, shift=1.7)(lambda x, t: torch.full_like(x, 0.3), noise)
    assert torch.allclose(latents, noise - 0.3)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (EulerSampler, [1.0, 0.75, 0.5, 0.25]),
        (HeunSampler, [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_denoiser_is_asked_at_the_times_of_the_algorithm(kind: type[Sampler], expected: list[float]) -> None:
    asked: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return torch.zeros_like(x)

    kind(4)(velocity, torch.zeros(3, 1, 2, 2))
    assert [t.tolist() for t in asked] == [[t] * 3 for t in expected]


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(1.0, [1.0, 0.75, 0.5, 0.25, 0.0]), (3.0, [1.0, 0.9, 0.75, 0.5, 0.0]), (1 / 3, [1.0, 0.5, 0.25, 0.1, 0.0])],
)
def test_times_go_from_one_to_zero_by_the_shift(shift: float, expected: list[float]) -> None:
    assert EulerSampler(4, shift).times == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0.1, 0.7, 1.0, 3.0, 11.1])
def test_times_end_at_exactly_zero_and_only_fall(shift: float) -> None:
    times = HeunSampler(13, shift).times
    assert len(times) == 14
    assert times[0] == pytest.approx(1.0, abs=1e-12)
    assert times[-1] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_latents_do_not_depend_on_the_batch(kind: type[Sampler]) -> None:
    noise = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    together = kind(6, shift=2.0)(gaussian_velocity, noise)
    alone = [kind(6, shift=2.0)(gaussian_velocity, noise[i : i + 1]) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_noise_is_left_as_it_was_and_no_graph_is_kept(kind: type[Sampler]) -> None:
    noise = torch.ones(1, 1, 2, 2, requires_grad=True)
    latents = kind(3)(lambda x, t: x, noise)
    assert torch.equal(noise, torch.ones(1, 1, 2, 2))
    assert not latents.requires_grad


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("num_steps", [0, -2])
def test_no_steps_are_refused(kind: Callable[..., Sampler], num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps={num_steps}"):
        kind(num_steps)


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_shift_that_is_not_above_zero_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match=f"shift={shift}"):
        EulerSampler(4, shift)
