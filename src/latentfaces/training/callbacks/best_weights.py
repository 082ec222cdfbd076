"""The best weights as plain files."""

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


class BestWeights(Callback):
    """Writes `best_*.pth`, plain state dicts of the averaged weights, whenever the validation loss is the lowest yet.

    Comes first of the callbacks that look at what a validation has found: none of them sees a value that is no number.

    Args:
        folder: where to.
        monitor: the logged value to minimise.
    """

    def __init__(self, folder: str | Path, monitor: str = "val/loss") -> None:
        self.folder, self.monitor = Path(folder), monitor
        self.best = math.inf

    def forget(self) -> None:
        """Take the next weights, whatever their loss."""
        self.best = math.inf

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.check_monitored(trainer)
        value = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(value):
            raise NonFiniteError(f"{self.monitor} is {value} at step {trainer.global_step}")
        if value < self.best:
            with averaged_weights(trainer, pl_module), full_disk_survived(trainer):
                self.write(pl_module)
                self.best = value

    def check_monitored(self, trainer: Trainer) -> None:
        """Hold what callbacks monitor against what is logged.

        Raises:
            UserError: one of them waits for something else.
        """
        for callback in trainer.callbacks if trainer.state.fn == "fit" else [self]:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if monitor is not None and monitor not in trainer.callback_metrics:
                logged = ", ".join(sorted(trainer.callback_metrics))
                raise UserError(
                    f"the callback {type(callback).__name__} has monitor={monitor}, which is not logged: take one of "
                    f"{logged}"
                )

    def write(self, pl_module: LightningModule) -> None:
        """Write all files, each appearing whole; all ranks must call this."""
        assert isinstance(pl_module, BaseModule)
        for name, module in pl_module.exports().items():
            save_weights(module, self.folder / f"{name}.pth")

    def load(self, pl_module: LightningModule) -> None:
        """Give the module the best weights."""
        assert isinstance(pl_module, BaseModule)
        name = next(iter(pl_module.exports()))
        best = torch.load(self.folder / f"{name}.pth", weights_only=True, map_location="cpu")
        own = pl_module.network.state_dict()
        pl_module.network.load_state_dict({key: placed_like(value, own[key]) for key, value in best.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
