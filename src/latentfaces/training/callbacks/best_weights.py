"""Best weights as plain state dicts."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.errors import UserError
from latentfaces.files import read_json
from latentfaces.ranks import is_main_process
from latentfaces.run import RESULT
from latentfaces.training.base_module import BaseModule
from latentfaces.training.callbacks.ema import averaged_weights
from latentfaces.training.checkpoint import atomic_save, full_disk_survived
from latentfaces.training.distributed.sharding import gathered, placed_like
from latentfaces.training.nan_guard import NonFiniteError


class BestWeights(Callback):
    """Write `best_*.pth`, the averaged weights, whenever `val/loss` is the lowest so far.

    It is the first callback that reads the results of a validation, so that no other sees a non-finite value.

    Args:
        folder: folder of the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.best = math.inf
        self.validated_step = -1
        """Step of the last validation."""
        self.closed = False
        """Keep the best weights so far."""

    def forget(self) -> None:
        """Write the next weights, whatever their loss."""
        self.best = math.inf

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A checkpoint of the last step does not know the validation after it, which may have written the files.
        assert isinstance(pl_module, BaseModule)
        result = read_json(self.folder.parent / RESULT)
        if result.get("steps") == pl_module.resumed_at is not None:
            self.best = min(self.best, result.get("val/best_loss", math.inf))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated_step = trainer.global_step
        value = float(trainer.callback_metrics["val/loss"])
        if not math.isfinite(value):
            raise NonFiniteError(f"val/loss is {value} at step {trainer.global_step}")
        if value < self.best and not self.closed:
            assert isinstance(pl_module, BaseModule)
            with averaged_weights(trainer, pl_module):
                # Every rank gathers sharded weights, also if the disk of rank 0 is full.
                states = {name: gathered(module.state_dict()) for name, module in pl_module.exports().items()}
                with full_disk_survived(trainer, self.folder):
                    for name, state in states.items() if is_main_process() else ():
                        atomic_save(state, self.folder / f"{name}.pth")
                    self.best = value
            self.best = trainer.strategy.broadcast(self.best)

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
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
