"""From noise to latents: solvers of dx / dt = v(x, t) from t = 1 to t = 0."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


class Sampler(ABC):
    """`sampler(denoiser, noise)` -> latents. The denoiser is any callable (x_t, t (b,)) -> v.

    Args:
        num_steps: steps from noise to data.
        shift: above 1 spends more steps at noisy times, t' = shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23).
    """

    def __init__(self, num_steps: int, shift: float = 1.0) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        if shift <= 0:
            raise ValueError(f"shift={shift} must be above 0")
        self.num_steps, self.shift = num_steps, shift

    @property
    def times(self) -> list[float]:
        """num_steps + 1 times, from 1 down to 0."""
        uniform = [1 - step / self.num_steps for step in range(self.num_steps + 1)]
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in uniform]

    @torch.no_grad()
    def __call__(self, denoiser: Velocity, noise: Tensor) -> Tensor:
        """Noise (b, c, h, w) ~ N(0, 1) -> normalised latents (b, c, h, w)."""
        x, times = noise, self.times
        for t, t_next in itertools.pairwise(times):
            x = self.step(denoiser, x, t, t_next)
        return x

    @abstractmethod
    def step(self, denoiser: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
        """x at t -> x at t_next < t."""


class EulerSampler(Sampler):
    """First order, one evaluation a step (Liu et al. 2023, section 2.2)."""

    def step(self, denoiser: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
        return x + (t_next - t) * denoiser(x, x.new_full((len(x),), t))


class HeunSampler(Sampler):
    """Second order, two evaluations a step, one in the last (Karras et al. 2022, algorithm 1 without churn)."""

    def step(self, denoiser: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
        v = denoiser(x, x.new_full((len(x),), t))
        euler = x + (t_next - t) * v
        if t_next == 0:  # as in the paper: the network is least trained where no noise is left
            return euler
        return x + (t_next - t) * 0.5 * (v + denoiser(euler, x.new_full((len(x),), t_next)))
