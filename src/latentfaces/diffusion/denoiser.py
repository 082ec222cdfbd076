"""Denoiser: a network with the schedule and the target that define its output."""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.diffusion.schedule import NoiseSchedule, per_sample
from latentfaces.errors import UserError

Target = Literal["v", "eps", "x0"]
START_TIME, START_RATIO = 0.956, 20.0
"""Time and sigma / alpha where sampling with target="eps" starts at most on a schedule that ends in pure noise.

By default, about .999 of the times of `LogitNormalTime` and .997 of the ratios of `LogNormalNoise` are below them.
"""
MAX_RATIO = 150.0
"""sigma / alpha where sampling with target="eps" starts at most: x0 there contains 150 times the error of eps."""


class Predictor(Protocol):
    """Interface of samplers to a `Denoiser`, guided or not."""

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise schedule of x_t."""

    @property
    def first_time(self) -> float:
        """Time where sampling starts."""

    def x0_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) with x0 = a * x_t + b * prediction."""

    def noise_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) with noise = a * x_t + b * prediction."""

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        """Return the prediction for x_t (b, c, h, w), all at the same time t."""

    def check_times(self, times: Sequence[float]) -> None:
        """Check the times at which a sampler will evaluate this predictor.

        Raises:
            UserError: guidance would have no effect at any of them.
        """


class Denoiser(nn.Module):
    """Network (`DiT`, `UNet`) with the schedule of its input and the target of its output.

    Args:
        network: maps x_t (b, c, h, w) and t (b,) to (b, c, h, w).
        schedule: noise schedule of x_t.
        target: prediction target: "v" (see `NoiseSchedule.v_coefficients`), "eps", the noise (Ho et al. 2020), or "x0".
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, target: Target = "v") -> None:
        super().__init__()
        self.network, self.schedule, self.target = network, schedule, target
        self.condition: Tensor | None = None

    def given(self, condition: Tensor | None) -> "Denoiser":
        """Return this denoiser with the condition (b, n) or (1, n) of its predictions; None where nothing is known."""
        denoiser = copy.copy(self)  # the network is shared
        denoiser.condition = condition
        return denoiser

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place at its first call, with the arguments of `torch.compile`."""
        self.network.compile(*args, **kwargs)
        if self.has_auxiliary:  # losses and guidance call this method instead of forward
            self.network.heads = torch.compile(self.network.heads, *args, **kwargs)  # type: ignore[arg-type, assignment]

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, t_next: Tensor | None = None) -> Tensor:
        """Predict the target (b, c, h, w) in the dtype of x_t.

        Args:
            x_t, t, condition: see `inputs`.
            t_next: times (b,) that the step ends at, for a flow map alone.

        Raises:
            UserError: a flow map is called without t_next, as by other samplers than `FlowMapSampler`.
        """
        if not self.is_flow_map:
            return self.network(*self.inputs(x_t, t, condition)).to(x_t.dtype)
        if t_next is None:
            raise UserError("A run of model=fast takes large steps only. Use sampler=few and no guidance.")
        step = self.schedule.condition(t) - self.schedule.condition(t_next)
        return self.network(*self.inputs(x_t, t, condition), step=step).to(x_t.dtype)

    def heads(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the prediction and, if the network has an auxiliary head, its prediction."""
        if not self.has_auxiliary:
            return [self(x_t, t, condition)]
        return [head.to(x_t.dtype) for head in self.network.heads(*self.inputs(x_t, t, condition))]  # type: ignore[operator]

    @property
    def is_flow_map(self) -> bool:
        """Whether the network takes the length of a step, see `FlowMapLoss`."""
        return getattr(self.network, "embed_step", None) is not None

    @property
    def has_auxiliary(self) -> bool:
        """Whether the network has an auxiliary head."""
        return bool(getattr(self.network, "auxiliary_depth", 0))

    def inputs(self, x_t: Tensor, t: Tensor, condition: Tensor | None) -> tuple[Tensor, ...]:
        """Return the network's arguments: scaled x_t, the schedule's time and the condition, if any.

        Args:
            x_t: noised latents (b, c, h, w).
            t: times (b,).
            condition: parameters of the augmentation, then labels (b, n). Without the former they are 0; None is 0.

        Raises:
            ValueError: the condition has more entries than the network takes.
        """
        inputs = per_sample(self.schedule.input_scale(t)).to(x_t.dtype) * x_t, self.schedule.condition(t)
        if condition is None:
            return inputs
        missing = getattr(self.network, "label_channels", condition.shape[1]) - condition.shape[1]
        if missing < 0:
            raise ValueError(f"a condition of {condition.shape[1]} entries has {-missing} more than the network takes")
        return (*inputs, F.pad(condition, (missing, 0)) if missing else condition)

    def condition_of(self, x_t: Tensor) -> Tensor | None:
        """Return the condition (b, n) of predictions for x_t (b, c, h, w)."""
        return None if self.condition is None else self.condition.expand(len(x_t), -1)

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        return self(x_t, x_t.new_full((len(x_t),), t), self.condition_of(x_t))

    def check_times(self, times: Sequence[float]) -> None:
        """Accept any times: there is no guidance."""

    def target_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (a, b) with target = a * x0 + b * noise."""
        if self.target == "v":
            return self.schedule.v_coefficients(t)
        zero, one = torch.zeros_like(t), torch.ones_like(t)
        return (zero, one) if self.target == "eps" else (one, zero)

    def target_of(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the target for x0 and noise (b, c, h, w) at t (b,)."""
        a, b = self.target_coefficients(t)
        return per_sample(a) * x0 + per_sample(b) * noise

    def x0_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # solve x_t = alpha x0 + sigma eps and target = a x0 + b eps for x0
        (a, b), alpha, sigma = self.target_coefficients(t), self.schedule.alpha(t), self.schedule.sigma(t)
        determinant = alpha * b - a * sigma
        return b / determinant, -sigma / determinant

    def noise_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        (a, b), alpha, sigma = self.target_coefficients(t), self.schedule.alpha(t), self.schedule.sigma(t)
        determinant = alpha * b - a * sigma
        return -a / determinant, alpha / determinant

    @cached_property
    def first_time(self) -> float:
        """Time where sampling starts: 1, or earlier with target="eps", where sigma / alpha multiplies its error."""
        one = torch.ones(1, dtype=torch.float64)
        last = float(self.schedule.ratio(one))
        if self.target != "eps" or last <= MAX_RATIO:
            return 1.0
        if last < 1e6:  # not pure noise; a terminal alpha of 0 may round to 1e-17
            return float(self.schedule.time_at(one * MAX_RATIO))
        return min(START_TIME, float(self.schedule.time_at(one * START_RATIO)))
