"""A network made a denoiser: what it predicts, in the terms that losses and samplers ask for."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from latentfaces.diffusion.schedule import NoiseSchedule, per_sample

Target = Literal["v", "eps", "x0"]
START_TIME, START_RATIO = 0.956, 20.0
"""Time and sigma / alpha where sampling with target="eps" starts at most on a schedule that ends in pure noise.

These are about the .999 quantiles of `LogitNormalTime` (the time) and `LogNormalNoise` (the ratio).
"""
MAX_RATIO = 150.0
"""sigma / alpha where sampling with target="eps" starts at most: x0 there contains 150 times the error of eps."""


class Predictor(Protocol):
    """What samplers ask: a `Denoiser`, or one that is guided."""

    @property
    def schedule(self) -> NoiseSchedule:
        """How noise was added."""

    @property
    def first_time(self) -> float:
        """Where sampling starts."""

    def x0_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0 = first * x_t + second * prediction."""

    def noise_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noise = first * x_t + second * prediction."""

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        """Return the prediction for x_t (b, c, h, w), all at the same time t."""

    def check_times(self, times: Sequence[float]) -> None:
        """Check the times at which a sampler will evaluate this predictor.

        Raises:
            UserError: guidance would have no effect at any of them.
        """


class Denoiser(nn.Module):
    """A backbone (`DiT`, `UNet`) together with the schedule and the target that give its output a meaning.

    Args:
        network: (x_t (b, c, h, w), t (b,)) -> (b, c, h, w).
        schedule: how the x_t were made.
        target: what the network predicts: "v" (see the schedule), the noise "eps" (Ho et al. 2020) or "x0".
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, target: Target = "v") -> None:
        super().__init__()
        self.network, self.schedule, self.target = network, schedule, target

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place when it is first used; the arguments are those of `torch.compile`."""
        self.network.compile(*args, **kwargs)
        if self.has_auxiliary:  # which losses and guidance ask for by another method
            self.network.heads = torch.compile(self.network.heads, *args, **kwargs)  # type: ignore[arg-type, assignment]

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Prediction of the target (b, c, h, w), in the type of x_t; label (b, n): how x0 was augmented, if it was."""
        return self.network(*self.inputs(x_t, t, label)).to(x_t.dtype)

    def heads(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> list[Tensor]:
        """The prediction and, where the network has one, that of its auxiliary head."""
        if not self.has_auxiliary:
            return [self(x_t, t, label)]
        return [head.to(x_t.dtype) for head in self.network.heads(*self.inputs(x_t, t, label))]  # type: ignore[operator]

    @property
    def has_auxiliary(self) -> bool:
        """Whether the network has a second head, halfway."""
        return bool(getattr(self.network, "auxiliary_depth", 0))

    def inputs(self, x_t: Tensor, t: Tensor, label: Tensor | None) -> tuple[Tensor, ...]:
        """What the network sees."""
        seen = per_sample(self.schedule.input_scale(t)).to(x_t.dtype) * x_t, self.schedule.condition(t)
        return seen if label is None else (*seen, label)

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        return self(x_t, x_t.new_full((len(x_t),), t))

    def check_times(self, times: Sequence[float]) -> None:
        """Accept any times: there is no guidance."""

    def target_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Target = first * x0 + second * noise."""
        if self.target == "v":
            return self.schedule.v_coefficients(t)
        share = torch.ones_like(t)
        return (0 * share, share) if self.target == "eps" else (share, 0 * share)

    def target_of(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict for x0 and noise (b, c, h, w) at t (b,)."""
        on_x0, on_noise = self.target_coefficients(t)
        return per_sample(on_x0) * x0 + per_sample(on_noise) * noise

    def x0_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # x_t = alpha x0 + sigma eps and target = a x0 + b eps, solved for x0
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

    def predict_x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predicted clean latents, (b, c, h, w): the mean of all x0 that could have led to x_t at t (b,)."""
        on_x, on_prediction = self.x0_coefficients(t)
        return per_sample(on_x) * x_t + per_sample(on_prediction) * self(x_t, t)
