"""The best weights as plain files."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.training.callbacks.ema import averaged_weights
from latentfaces.training.checkpoint import save_weights
from latentfaces.training.sharding import placed_like
from latentfaces.training.stage import Stage


class BestWeights(Callback):
    """Writes `best_*.pth`, plain state dicts of the averaged weights, whenever the validation loss is the lowest yet.

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
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best:  # never true of NaN
            self.best = value
            with averaged_weights(trainer, pl_module):
                self.write(pl_module)

    def write(self, pl_module: LightningModule) -> None:
        """Write all files, each appearing whole; all ranks must call this."""
        assert isinstance(pl_module, Stage)
        for name, module in pl_module.exports().items():
            save_weights(module, self.folder / f"{name}.pth")

    def load(self, pl_module: LightningModule) -> None:
        """Give the module the best weights."""
        assert isinstance(pl_module, Stage)
        name = next(iter(pl_module.exports()))
        best = torch.load(self.folder / f"{name}.pth", weights_only=True, map_location="cpu")
        own = pl_module.network.state_dict()
        pl_module.network.load_state_dict({key: placed_like(value, own[key]) for key, value in best.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
