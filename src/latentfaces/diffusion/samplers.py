"""Samplers: solvers that map noise to latents.

The x0 and the noise of a denoiser are linear in x_t and in its prediction. A step is therefore a linear combination,
whose coefficients are computed in float64 before sampling starts.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentfaces.bounds import Fraction, Positive, PositiveFloat
from latentfaces.diffusion.denoiser import Predictor
from latentfaces.diffusion.schedule import NoiseSchedule, Spacing, at, shift_for
from latentfaces.errors import UserError

Auto = Literal["auto"]
Shift = PositiveFloat | Auto
AfterStep = Callable[[Tensor, float], Tensor]
"""Callback (x at t, t) -> x, applied after each step."""

RATIO_RANGE = 0.002, 80.0
"""Lowest and highest sigma / alpha of the spacings "karras" and "log_snr" (Karras et al. 2022, table 1)."""
RHO = 7
CLEANEST = 1e-3
"""sigma / alpha at which inversion starts; the latents are used as x_t there."""


@dataclass(frozen=True)
class Trajectory:
    """Times and callbacks of one sampling run.

    Args:
        times: times from the first to the last.
        fresh: returns new noise of the shape of x; `torch.randn_like` if None.
        change: applied to x after each step.
    """

    times: Sequence[float]
    fresh: Callable[[], Tensor] | None = None
    change: AfterStep | None = None

    @property
    def grid(self) -> Tensor:
        """Times as a float64 tensor."""
        return torch.tensor(self.times, dtype=torch.float64)

    def noise_like(self, x: Tensor) -> Tensor:
        """Return new noise of the shape of x."""
        return torch.randn_like(x) if self.fresh is None else self.fresh()

    def after_step(self, x: Tensor, t: float) -> Tensor:
        """Apply the callback to x at t."""
        return x if self.change is None else self.change(x, t)


class Sampler(ABC):
    """Base class of samplers: `sampler(denoiser, noise)` returns latents.

    Args:
        num_steps: number of steps from noise to data.
        shift: factor of sigma / alpha, smaller near the end of a schedule. Above 1 it moves steps to noisy times. For a
            rectified flow, t' = shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23). "auto" is `shift_for` the
            latents.
        spacing: even spacing of the times. "uniform" on the schedule's even scale (`NoiseSchedule.condition`); "karras"
            in (sigma / alpha)^(1/7) (Karras et al. 2022, eq. 5); "log_snr" in log(sigma / alpha) (Lu et al. 2022);
            "auto" uses the schedule's default.
    """

    def __init__(self, num_steps: Positive, shift: Shift = 1.0, spacing: Spacing | Auto = "auto") -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1")
        if shift != "auto" and shift <= 0:
            raise ValueError(f"shift={shift} must be above 0")
        self.num_steps, self.shift, self.spacing = num_steps, shift, spacing

    def times(self, schedule: NoiseSchedule, first: float = 1.0, shape: Sequence[int] = ()) -> list[float]:
        """Return num_steps + 1 times, from `first` down to 0, for latents of a shape (..., c, h, w)."""
        spacing = schedule.spacing if self.spacing == "auto" else self.spacing
        fraction = torch.arange(self.num_steps, dtype=torch.float64) / self.num_steps
        if spacing == "uniform":
            t = schedule.time_of((1 - fraction) * at(schedule.condition, first))
        else:
            low, high = RATIO_RANGE
            high = min(high, at(schedule.ratio, first))
            fraction = fraction * self.num_steps / max(self.num_steps - 1, 1)
            if spacing == "karras":
                ratio = (high ** (1 / RHO) + fraction * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
            else:
                ratio = high * (low / high) ** fraction
            t = schedule.time_at(ratio)
        shift = shift_for(shape) if self.shift == "auto" else self.shift
        if shift != 1:
            ratio, last = schedule.ratio(t), at(schedule.ratio, first)
            # Stay below `last`, or several steps would start at the end of the schedule.
            t = schedule.time_at(shift * ratio / (1 + (shift - 1) * ratio / last))
        t[0] = first
        return [*t.tolist(), 0.0]

    def checked_times(self, denoiser: Predictor, shape: Sequence[int]) -> list[float]:
        """Return the times for this denoiser and latents of a shape (..., c, h, w), after it has checked them.

        Raises:
            UserError: no time lies in the denoiser's guidance interval.
        """
        times = self.times(denoiser.schedule, denoiser.first_time, shape)
        denoiser.check_times(times[:-1])
        return times

    @torch.no_grad()
    def __call__(self, denoiser: Predictor, noise: Tensor, fresh: Callable[[], Tensor] | None = None) -> Tensor:
        """Map noise (b, c, h, w) ~ N(0, 1) to normalized latents (b, c, h, w).

        Args:
            denoiser: denoiser, guided or not.
            noise: initial noise.
            fresh: returns new noise of the same shape, for samplers that add noise; `torch.randn_like` if None.
        """
        times = self.checked_times(denoiser, noise.shape)
        return self.solve(denoiser, at(denoiser.schedule.sigma, times[0]) * noise, Trajectory(times, fresh))

    @torch.no_grad()
    def refine(
        self,
        denoiser: Predictor,
        x_t: Tensor,
        start: float,
        fresh: Callable[[], Tensor] | None = None,
        after_step: AfterStep | None = None,
    ) -> Tensor:
        """Map x_t (b, c, h, w) at the time `start` to latents, by the steps below it."""
        start = min(start, denoiser.first_time)
        times = self.times(denoiser.schedule, denoiser.first_time, x_t.shape)
        below = [t for t in times if t < start * (1 - 1e-4)]
        denoiser.check_times([start, *below[:-1]])
        return self.solve(denoiser, x_t, Trajectory([start, *below], fresh, after_step))

    @torch.no_grad()
    def invert(self, denoiser: Predictor, latents: Tensor) -> Tensor:
        """Map latents (b, c, h, w) to the noise that generates them: solve the ODE backwards.

        Raises:
            UserError: this sampler adds noise, so it has no inverse.
        """
        if self.is_random:
            raise UserError("A sampler that adds noise cannot be inverted. Use sampler=heun.")
        schedule = denoiser.schedule
        cleanest = at(schedule.time_at, CLEANEST)
        times = sorted({cleanest, *(t for t in self.checked_times(denoiser, latents.shape) if t > cleanest)})
        x = self.solve(denoiser, at(schedule.alpha, cleanest) * latents, Trajectory(times))
        return x / at(schedule.sigma, times[-1])

    @property
    def is_random(self) -> bool:
        """Whether the sampler adds noise in its steps."""
        return False

    @abstractmethod
    def solve(self, denoiser: Predictor, x: Tensor, trajectory: Trajectory) -> Tensor:
        """Map x at the first time of the trajectory to x at the last."""


def combination(denoiser: Predictor, t: Tensor, on_x0: Tensor, on_noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a, b) with on_x0 * x0 + on_noise * noise = a * x_t + b * prediction at the times t (n,)."""
    (x0_x, x0_f), (noise_x, noise_f) = denoiser.x0_coefficients(t), denoiser.noise_coefficients(t)
    return on_x0 * x0_x + on_noise * noise_x, on_x0 * x0_f + on_noise * noise_f


def velocity_coefficients(denoiser: Predictor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a, b) with dx / dt = alpha' x0 + sigma' eps = a * x_t + b * prediction (Song et al. 2021, eq. 13)."""
    return combination(denoiser, t, denoiser.schedule.alpha_derivative(t), denoiser.schedule.sigma_derivative(t))


class EulerSampler(Sampler):
    """Euler's method: first order, one evaluation per step (Liu et al. 2023, section 2.2)."""

    def solve(self, denoiser: Predictor, x: Tensor, trajectory: Trajectory) -> Tensor:
        for t, t_next, (a, b) in euler_steps(denoiser, trajectory):
            x = trajectory.after_step(torch.add(a * x, denoiser.predict(x, t), alpha=b), t_next)
        return x


class HeunSampler(Sampler):
    """Heun's method: second order, two evaluations per step, one in the last.

    Implements Algorithm 1 of Karras et al. 2022, without churn.
    """

    def solve(self, denoiser: Predictor, x: Tensor, trajectory: Trajectory) -> Tensor:
        slopes = torch.stack(velocity_coefficients(denoiser, trajectory.grid), dim=1).tolist()
        for (t, t_next, (a, b)), (a_t, b_t), (a_next, b_next) in zip(
            euler_steps(denoiser, trajectory), slopes, slopes[1:], strict=False
        ):
            prediction = denoiser.predict(x, t)
            euler = torch.add(a * x, prediction, alpha=b)
            if t_next == 0:  # no correction: the network is least trained where no noise is left
                x = euler
            else:
                v = torch.add(a_t * x, prediction, alpha=b_t)
                v_next = torch.add(a_next * euler, denoiser.predict(euler, t_next), alpha=b_next)
                x = x + (0.5 * (t_next - t)) * (v + v_next)
            x = trajectory.after_step(x, t_next)
        return x


def euler_steps(denoiser: Predictor, trajectory: Trajectory) -> list[tuple[float, float, list[float]]]:
    """Return (t, t_next, (a, b)) of each step, which maps x to a * x + b * prediction.

    The step to t = 0 returns the predicted x0, as in DDIM. Along dx / dt it would leave noise on a curved schedule.
    """
    grid = trajectory.grid
    length, (on_x, on_prediction) = grid.diff(), velocity_coefficients(denoiser, grid[:-1])
    steps = torch.stack([1 + length * on_x, length * on_prediction], dim=1)
    to_data = torch.stack(denoiser.x0_coefficients(grid[:-1]), dim=1)
    steps = torch.where((grid[1:] == 0)[:, None], to_data, steps)
    return list(zip(trajectory.times, trajectory.times[1:], steps.tolist(), strict=False))


class NoisySampler(Sampler):
    """Base class of samplers that may add noise in each step except the last.

    Args:
        num_steps, shift, spacing: see `Sampler`.
        eta: amount of noise, from 0 (none) to 1 (as much as the reverse SDE).
    """

    def __init__(
        self, num_steps: Positive, shift: Shift = 1.0, spacing: Spacing | Auto = "auto", eta: Fraction = 0.0
    ) -> None:
        super().__init__(num_steps, shift, spacing)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} must be between 0 and 1")
        self.eta = eta

    @property
    def is_random(self) -> bool:
        return self.eta > 0


class DDIMSampler(NoisySampler):
    """DDIM (Song et al. 2021, "Denoising diffusion implicit models", eq. 12).

    Args:
        num_steps, shift, spacing: see `Sampler`.
        eta: std of the added noise as a fraction of that of ancestral sampling.
    """

    def solve(self, denoiser: Predictor, x: Tensor, trajectory: Trajectory) -> Tensor:
        grid = trajectory.grid
        t, alpha, sigma = grid[:-1], denoiser.schedule.alpha(grid[1:]), denoiser.schedule.sigma(grid[1:])
        added, kept = torch.zeros_like(sigma), sigma
        if self.eta > 0:
            # Variance of x at the next time given x_t and x0 (Kingma et al. 2021, eq. 33), in any schedule.
            shrunk = denoiser.schedule.snr(t) * (sigma / alpha).square()  # 0 where the next time is 0
            added = self.eta * sigma * (1 - shrunk).clamp(min=0).sqrt()
            kept = (sigma.square() - added.square()).clamp(min=0).sqrt()
        steps = torch.stack([*combination(denoiser, t, alpha, kept), added], dim=1).tolist()
        for (a, b, c), (t_now, t_next) in zip(steps, itertools.pairwise(trajectory.times), strict=True):
            x = torch.add(a * x, denoiser.predict(x, t_now), alpha=b)
            if c > 0:
                x = torch.add(x, trajectory.noise_like(x), alpha=c)
            x = trajectory.after_step(x, t_next)
        return x


class DDPMSampler(DDIMSampler):
    """Ancestral sampling: draws each step from q(x_s | x_t, x0) (Ho et al. 2020, eq. 6 and 7).

    Args:
        num_steps, shift, spacing: see `Sampler`.
    """

    def __init__(self, num_steps: Positive, shift: Shift = 1.0, spacing: Spacing | Auto = "auto") -> None:
        super().__init__(num_steps, shift, spacing, eta=1.0)


class DPMpp2MSampler(NoisySampler):
    """DPM-Solver++(2M): second order, one evaluation per step (Lu et al. 2022b, algorithm 2).

    The first and the last step are of first order: at t = 0 the log-SNR is infinite.

    Args:
        num_steps, shift, spacing: see `Sampler`.
        eta: strength of the stochastic part of the reverse SDE; 0 is the ODE, 1 is SDE-DPM-Solver++(2M) of the paper.
    """

    def solve(self, denoiser: Predictor, x: Tensor, trajectory: Trajectory) -> Tensor:
        grid = trajectory.grid
        on_x, on_prediction = denoiser.x0_coefficients(grid[:-1])
        alpha, sigma = denoiser.schedule.alpha(grid), denoiser.schedule.sigma(grid)
        h = (alpha / sigma).log().diff()  # step in half the log-SNR
        ratio = sigma[1:] / sigma[:-1]
        kept = (ratio * alpha[:-1] / alpha[1:]) ** self.eta  # fraction of the old noise, e^(-eta h)
        on_noise = sigma[1:] * (1 - kept.square()).sqrt()
        shrink = ratio * kept
        towards = alpha[1:] - alpha[:-1] * shrink  # alpha (1 - e^-(1 + eta) h)
        # extrapolation of x0 from the last step: 1 / (2 r) of the paper, r = previous h / h
        beyond = torch.zeros_like(h)
        beyond[1:] = 0.5 * h[1:] / h[:-1]
        beyond[~torch.isfinite(h)] = 0.0
        steps = torch.stack([on_x, on_prediction, beyond, shrink, towards, on_noise], dim=1).tolist()
        last_x0 = torch.zeros_like(x)
        for (a, b, c, d, e, noise), (t, t_next) in zip(steps, itertools.pairwise(trajectory.times), strict=True):
            x0 = torch.add(a * x, denoiser.predict(x, t), alpha=b)
            extrapolated = torch.add(x0, x0 - last_x0, alpha=c)
            x, last_x0 = torch.add(d * x, extrapolated, alpha=e), x0
            if noise > 0:
                x = torch.add(x, trajectory.noise_like(x), alpha=noise)
            x = trajectory.after_step(x, t_next)
        return x
