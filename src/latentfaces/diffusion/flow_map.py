"""Flow map: a network that samples in 1, 2 or 4 evaluations, learned from a trained denoiser.

A denoiser gives the slope of a trajectory from noise to data. A flow map gives its chord: from x at t, the mean slope
until a later point of the trajectory (Boffi et al. 2024, "Flow map matching"). The network takes the length of the step
as a third input.
"""

import itertools
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from latentfaces.bounds import Ge, MultipleOf
from latentfaces.diffusion.denoiser import Denoiser, Predictor
from latentfaces.diffusion.guidance import Guidance
from latentfaces.diffusion.loss import DenoisingLoss
from latentfaces.diffusion.samplers import AfterStep, DPMpp2MSampler, Sampler, Trajectory, combination
from latentfaces.diffusion.schedule import at, per_sample
from latentfaces.diffusion.time_sampler import UniformTime
from latentfaces.errors import UserError

NUM_STEPS = (1, 2, 4)
"""Numbers of steps that a flow map is trained for."""


def step_coefficients(denoiser: Predictor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
    """Return (a, b) with x at t_next = a * x_t + b * prediction (Song et al. 2021, DDIM, eq. 12 with eta = 0)."""
    return combination(denoiser, t, denoiser.schedule.alpha(t_next), denoiser.schedule.sigma(t_next))


class FlowMapSampler(Sampler):
    """Steps of a flow map, one evaluation each.

    Args:
        num_steps: 1, 2 or 4.
    """

    def __init__(self, num_steps: Literal[1, 2, 4] = 4) -> None:
        if num_steps not in NUM_STEPS:
            raise ValueError(f"num_steps={num_steps} must be 1, 2 or 4")
        super().__init__(num_steps, spacing="uniform")

    def refine(
        self,
        denoiser: Predictor,
        x_t: Tensor,
        start: float,
        fresh: Callable[[], Tensor] | None = None,
        after_step: AfterStep | None = None,
    ) -> Tensor:
        times = self.times(denoiser.schedule, denoiser.first_time)[:-1]
        near = [t for t in times if math.isclose(start, t, rel_tol=0.01)]
        if not near:  # the map is learned from these times alone
            strengths = denoiser.schedule.condition(torch.tensor(times)).tolist()
            raise UserError(
                f"{self.num_steps} steps of sampler=few start at task.strength="
                f"{', '.join(f'{s:.3g}' for s in strengths)}. Use one of these."
            )
        return super().refine(denoiser, x_t, near[0], fresh, after_step)

    def solve(self, denoiser: Predictor, x: Tensor, trajectory: Trajectory) -> Tensor:
        if not isinstance(denoiser, Denoiser) or not denoiser.is_flow_map:
            raise UserError("sampler=few needs a run of model=fast, without guidance=... Choose another sampler.")
        if trajectory.times[0] < trajectory.times[-1]:
            raise UserError("sampler=few has no inverse. Use the run that this one was learned from.")
        a, b = step_coefficients(denoiser, trajectory.grid[:-1], trajectory.grid[1:])
        condition = denoiser.condition_of(x)
        for (t, t_next), on_x, on_prediction in zip(
            itertools.pairwise(trajectory.times), a.tolist(), b.tolist(), strict=True
        ):
            start, end = (x.new_full((len(x),), time) for time in (t, t_next))
            x = torch.add(on_x * x, denoiser(x, start, condition, end), alpha=on_prediction)
            x = trajectory.after_step(x, t_next)
        return x


class FlowMapLoss(DenoisingLoss):
    """Mean squared error of a flow map on trajectories of a teacher (Luhman & Luhman 2021, for parts of a trajectory).

    The teacher solves the ODE from noise by DPM-Solver++(2M). Its guidance becomes a part of the flow map. Each
    trajectory gives 7 steps: four of a quarter, two of a half, and one from noise to data.

    Args:
        guidance: guidance of the teacher; None for that of its run.
        num_steps: steps of the teacher, a multiple of 4.
    """

    def __init__(self, guidance: Guidance | None = None, num_steps: Annotated[int, Ge(4), MultipleOf(4)] = 8) -> None:
        super().__init__(UniformTime())
        self.guidance, self.num_steps = guidance, num_steps
        self.teacher: tuple[Denoiser, Denoiser | None] | None = None

    def learn_from(self, denoiser: Denoiser, guide: Denoiser | None, guidance: Guidance) -> None:
        """Set the teacher."""
        self.teacher = denoiser, guide  # a tuple, so that neither is trained, moved or saved with this module
        self.guidance = guidance

    def guided(self, x: Tensor, condition: Tensor | None) -> Predictor:
        """Return the guided teacher, on the device of x."""
        assert self.teacher is not None
        assert self.guidance is not None
        denoiser, guide = self.teacher
        guide = guide and guide.to(x.device).given(condition)
        return self.guidance(denoiser.to(x.device).given(condition), guide)

    @torch.no_grad()
    def trajectory(self, noise: Tensor, condition: Tensor | None) -> tuple[Tensor, list[float]]:
        """Return the states (5, b, c, h, w) of trajectories from noise (b, c, h, w), and their times."""
        teacher, sampler = self.guided(noise, condition), DPMpp2MSampler(self.num_steps, spacing="uniform")
        times = sampler.times(teacher.schedule, teacher.first_time)
        states = [at(teacher.schedule.sigma, times[0]) * noise]

        def keep(x: Tensor, t: float) -> Tensor:
            states.append(x)
            return x

        sampler.solve(teacher, states[0], Trajectory(times, change=keep))
        every = self.num_steps // 4
        return torch.stack(states[::every]), times[::every]

    def forward(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of each step, (1, 7 b), for noise of the shape of x0 (b, c, h, w). x0 and t are not used."""
        states, times = self.trajectory(torch.randn_like(x0) if noise is None else noise, condition)
        starts = [4 * i // n for n in NUM_STEPS for i in range(n)]  # 0, 0, 2, 0, 1, 2, 3
        ends = [4 * (i + 1) // n for n in NUM_STEPS for i in range(n)]  # 4, 2, 4, 1, 2, 3, 4
        x, x_next = torch.cat([states[i] for i in starts]), torch.cat([states[i] for i in ends])
        grid = torch.tensor(times, dtype=torch.float64)
        start, end = grid[starts].repeat_interleave(len(x0)), grid[ends].repeat_interleave(len(x0))
        # A GPU need not wait for the trajectory before it gets these small tensors.
        a, b = (per_sample(c).to(x, non_blocking=True) for c in step_coefficients(denoiser, start, end))
        if condition is not None:
            condition = condition.repeat(len(starts), 1)
        start, end = (t.to(x, non_blocking=True) for t in (start, end))
        prediction = denoiser(x, start, condition, end)
        return (prediction - (x_next - a * x) / b).square().flatten(1).mean(1)[None]
