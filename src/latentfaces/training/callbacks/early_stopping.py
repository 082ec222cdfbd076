"""An early stop that lasts."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import callbacks as library
from lightning.pytorch.utilities import rank_zero_only


class EarlyStopping(library.EarlyStopping):
    """The library's, but a run that it has stopped stays stopped when it is resumed, unless given more patience."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            self.say()

    @rank_zero_only
    def say(self) -> None:
        """Tell why nothing is trained."""
        print(
            f"this run has been stopped early, after {self.wait_count} validations without a lower {self.monitor}: to "
            f"go on type callbacks.early_stopping.patience={2 * self.wait_count}, or ~callbacks.early_stopping"
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})  # what is asked for now
