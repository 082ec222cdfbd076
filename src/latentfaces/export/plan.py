"""Sampling as a plan: the evaluations of the denoiser, and how each input is combined from earlier results.

All samplers are linear in the noise and in the predictions. Recorded on coefficients in place of latents, any of them
becomes a table that a program without torch can follow.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentfaces.diffusion import Denoiser, FlowMapSampler, NoiseSchedule, Predictor, Sampler
from latentfaces.diffusion.flow_map import step_coefficients
from latentfaces.diffusion.guidance import Guided
from latentfaces.diffusion.schedule import shift_for

TERMS_PER_STEP = 3
"""Most terms that a step adds: two predictions and noise."""


class Recorder:
    """Predictor that records its inputs as coefficients of the terms so far.

    Args:
        predictor: denoiser, guided or not.
        num_terms: most terms.
    """

    def __init__(self, predictor: Predictor, num_terms: int) -> None:
        self.predictor, self.num_terms = predictor, num_terms
        self.steps: list[dict[str, Any]] = []

    @property
    def schedule(self) -> NoiseSchedule:
        return self.predictor.schedule

    @property
    def first_time(self) -> float:
        return self.predictor.first_time

    def x0_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor.x0_coefficients(t)

    def noise_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor.noise_coefficients(t)

    def check_times(self, times: Sequence[float]) -> None:
        self.predictor.check_times(times)

    def new_term(self, **step: Any) -> Tensor:
        """Record a step. Return the coefficients (num_terms,) of its result."""
        term = torch.zeros(self.num_terms, dtype=torch.float64)
        term[len(self.steps)] = 1
        self.steps.append(step)
        return term

    def noise(self) -> Tensor:
        """Record that noise is drawn."""
        return self.new_term(kind="noise")

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        guided = isinstance(self.predictor, Guided) and self.predictor.guidance.applies(t, self.schedule)
        return self.new_term(kind="denoise", t=t, guided=float(guided), x=self.coefficients(x_t))

    def coefficients(self, x: Tensor) -> list[float]:
        """Return the coefficients of the terms so far."""
        return x[: len(self.steps)].tolist()


def sampling_plan(predictor: Predictor, sampler: Sampler, shape: Sequence[int]) -> list[dict[str, Any]]:
    """Return the steps of a sampler, each of which gives one term, for latents of a shape (c, h, w).

    Returns:
        Steps of the kinds "noise" (a draw), "denoise" (evaluate the denoiser at time t on the sum of the terms so far,
        weighted by x; guided is 1 or 0), and last "latents" (their weighted sum is the result). A step of a flow map
        also has t_next.
    """
    if isinstance(sampler, FlowMapSampler):
        assert isinstance(predictor, Denoiser)
        return flow_map_plan(predictor, sampler)
    recorder, sampler = Recorder(predictor, 1 + TERMS_PER_STEP * sampler.num_steps), copy.copy(sampler)
    if sampler.shift == "auto":  # coefficients do not have the shape of the latents
        sampler.shift = shift_for(shape)
    latents = sampler(recorder, recorder.noise(), recorder.noise)
    return [*recorder.steps, {"kind": "latents", "x": recorder.coefficients(latents)}]


def flow_map_plan(denoiser: Denoiser, sampler: FlowMapSampler) -> list[dict[str, Any]]:
    """Return the steps of the sampler of a flow map, as `sampling_plan`."""
    times = torch.tensor(sampler.times(denoiser.schedule, denoiser.first_time), dtype=torch.float64)
    on_x, on_prediction = step_coefficients(denoiser, times[:-1], times[1:])
    x, steps = denoiser.schedule.sigma(times[:1]), [dict[str, Any](kind="noise")]
    for i in range(sampler.num_steps):
        ends = {"t": float(times[i]), "t_next": float(times[i + 1])}
        steps.append({"kind": "denoise", **ends, "guided": 0.0, "x": x.tolist()})
        x = torch.cat([on_x[i] * x, on_prediction[i : i + 1]])
    return [*steps, {"kind": "latents", "x": x.tolist()}]
