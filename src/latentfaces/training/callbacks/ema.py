"""The weights averaged over training: what is validated, exported and sampled from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from latentfaces.training.stage import Stage


def power_of_width(sigma_rel: float) -> float:
    """Exponent gamma of the average whose profile has the relative width sigma_rel (Karras et al. 2024, eq. 123-126).

    Solves sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) by bisection; sigma_rel in (0, 0.28).
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        if (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > sigma_rel**2:
            low = gamma
        else:
            high = gamma
    return low


class EMA(Callback):
    """Average of the trained weights with a power-function profile (Karras et al. 2024, eq. 2 and 127).

    Its length grows with training, so it forgets the first steps by itself and needs no warm-up. Validation, previews
    and exports see the average; the optimiser and the checkpoint's `state_dict` the weights themselves, also after an
    exception in the middle of a validation.

    Args:
        sigma_rel: width of the average relative to the training so far, in (0, 0.28).
    """

    def __init__(self, sigma_rel: float = 0.1) -> None:
        if not 0 < sigma_rel < 0.28:
            raise ValueError(f"sigma_rel={sigma_rel} must be above 0 and below 0.28")
        self.gamma = power_of_width(sigma_rel)
        self.average: list[Tensor] = []
        self.num_updates = 0
        self.swapped = False

    def decay(self, num_updates: int) -> float:
        """Weight of the old average in update `num_updates` >= 1."""
        return (1 - 1 / num_updates) ** (self.gamma + 1)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = self.parameters(pl_module)
        if not self.average:
            self.average = [p.detach().clone() for p in parameters]
        self.average = [a.to(p.device) for a, p in zip(self.average, parameters, strict=True)]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self.num_updates:  # gradients are being accumulated: no step was taken
            return
        self.num_updates = trainer.global_step
        torch._foreach_lerp_(self.average, self.parameters(pl_module), 1 - self.decay(self.num_updates))

    @staticmethod
    def parameters(pl_module: LightningModule) -> list[Tensor]:
        """The trained weights."""
        assert isinstance(pl_module, Stage)
        return [p.data for p in pl_module.network.parameters() if p.requires_grad]

    def swap(self, pl_module: LightningModule) -> None:
        """Exchange the weights and their average, in place."""
        for weight, average in zip(self.parameters(pl_module), self.average, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self.swapped = not self.swapped

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """Within this context the module has the averaged weights."""
        inside = self.swapped
        if not inside:
            self.swap(pl_module)
        try:
            yield
        finally:
            if not inside:
                self.swap(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average and not self.swapped:
            self.swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.swapped:
            self.swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.swapped:
            self.swap(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.num_updates = state_dict["average"], state_dict["num_updates"]


@contextmanager
def averaged_weights(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Within this context the module has its averaged weights, where the run keeps an average."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
    if ema is None:
        yield
    else:
        with ema.averaged(pl_module):
            yield
