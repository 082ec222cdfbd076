"""Early stopping that lasts over a resume."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from latentfaces.bounds import NonNegativeFloat, Positive
from latentfaces.ranks import is_main_process


class EarlyStopping(LightningEarlyStopping):
    """Stop early as Lightning does. A resumed run stays stopped unless the patience is raised.

    Args:
        monitor: name of the logged value.
        min_delta: smallest change that counts as better.
        patience: number of validations without a better value after which the training stops.
        options: others of Lightning's callback.
    """

    def __init__(
        self, monitor: str, min_delta: NonNegativeFloat = 0.0, patience: Positive = 20, **options: Any
    ) -> None:
        super().__init__(monitor, min_delta, patience, **options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            if is_main_process():
                print(
                    f"This run was stopped early, after {self.wait_count} validations without a lower {self.monitor}. "
                    f"To continue, use callbacks.early_stopping.patience={2 * self.wait_count} or "
                    "~callbacks.early_stopping."
                )

    def forget(self) -> None:
        """Start the patience again, from no score."""
        self.best_score, self.wait_count = torch.tensor(math.inf if self.mode == "min" else -math.inf), 0

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})  # the patience of this session
