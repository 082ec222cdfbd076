"""Best weights as plain state dicts."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.errors import UserError
from latentfaces.training.base_module import BaseModule
from latentfaces.training.callbacks.ema import averaged_weights
from latentfaces.training.checkpoint import full_disk_survived, save_weights
from latentfaces.training.distributed.sharding import placed_like
from latentfaces.training.nan_guard import NonFiniteError

HIGHER_IS_BETTER = ("psnr", "ssim", "health/")


class BestWeights(Callback):
    """Write `best_*.pth`, the averaged weights, whenever the validation loss is the lowest so far.

    It is the first callback that reads the results of a validation, so that no other sees a non-finite value.

    Args:
        folder: folder of the files.
        monitor: logged value to minimize.
    """

    def __init__(self, folder: str | Path, monitor: str = "val/loss") -> None:
        self.folder, self.monitor = Path(folder), monitor
        self.best = math.inf
        self.closed = False
        """Keep the best weights so far."""

    def forget(self) -> None:
        """Write the next weights, whatever their loss."""
        self.best = math.inf

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, monitor in self.monitored(trainer):
            if any(part in monitor for part in HIGHER_IS_BETTER):
                raise UserError(
                    f"{name} has monitor={monitor}, but callbacks keep the lowest value. Use a value that decreases, "
                    "such as val/loss."
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for name, monitor in self.monitored(trainer):
            if monitor not in trainer.callback_metrics:
                logged = ", ".join(sorted(trainer.callback_metrics))
                raise UserError(f"{name} has monitor={monitor}, which is not logged. Use one of {logged}.")
        value = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(value):
            raise NonFiniteError(f"{self.monitor} is {value} at step {trainer.global_step}")
        if value < self.best and not self.closed:
            with averaged_weights(trainer, pl_module), full_disk_survived(trainer, self.folder):
                self.write(pl_module)
                self.best = value

    def monitored(self, trainer: Trainer) -> list[tuple[str, str]]:
        """Return the names of callbacks and the values that they monitor."""
        callbacks: Any = trainer.callbacks if trainer.state.fn == "fit" else [self]  # type: ignore[attr-defined]
        return [(type(c).__name__, c.monitor) for c in callbacks if getattr(c, "monitor", None) is not None]

    def write(self, pl_module: LightningModule) -> None:
        """Write all files. For sharded weights, every rank must call it."""
        assert isinstance(pl_module, BaseModule)
        for name, module in pl_module.exports().items():
            save_weights(module, self.folder / f"{name}.pth")

    def load(self, pl_module: LightningModule) -> None:
        """Load the best weights into the module.

        Raises:
            UserError: there are none.
        """
        assert isinstance(pl_module, BaseModule)
        path = self.folder / f"{next(iter(pl_module.exports()))}.pth"
        if not path.exists():
            raise UserError(f"{path} is missing. Free some space if the disk is full, then use resume=auto.")
        best = torch.load(path, weights_only=True, map_location="cpu")
        own = pl_module.network.state_dict()
        pl_module.network.load_state_dict({key: placed_like(value, own[key]) for key, value in best.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitored": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("monitored", self.monitor) == self.monitor:
            self.best = state_dict["best"]
