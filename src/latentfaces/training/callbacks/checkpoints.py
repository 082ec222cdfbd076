"""Checkpoints to resume from."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from latentfaces.bounds import Positive, PositiveFloat


class LastCheckpoint(Checkpoint):
    """Write `last.ckpt` every N steps and every M minutes.

    Steps bound the loss of a kill in fast trainings, minutes in slow ones. Lightning's callback takes only one of them.

    Args:
        dirpath: folder of the checkpoint.
        every_n_train_steps: interval in steps.
        every_n_minutes: interval in minutes, or None.
    """

    def __init__(
        self,
        dirpath: str | Path,
        every_n_train_steps: Positive = 500,
        every_n_minutes: PositiveFloat | None = 15.0,
    ) -> None:
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_train_steps, self.every_n_minutes = every_n_train_steps, every_n_minutes
        self.last_step, self.written_at = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step, self.written_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.last_step:  # gradients are accumulated: no checkpoint holds a part of a step
            return
        self.last_step = trainer.global_step
        if self.due(trainer):
            trainer.save_checkpoint(self.path)
            self.written_at = time.monotonic()

    def due(self, trainer: Trainer) -> bool:
        """Return True if a checkpoint is due. Equal on all ranks."""
        if trainer.global_step % self.every_n_train_steps == 0:
            return True
        # A broadcast makes all ranks wait for rank 0. Several ranks do it only in steps that wait for the log anyway.
        if self.every_n_minutes is None or (
            trainer.world_size > 1 and trainer.global_step % trainer.log_every_n_steps  # type: ignore[attr-defined]
        ):
            return False
        return trainer.strategy.broadcast(time.monotonic() - self.written_at >= 60 * self.every_n_minutes)


class BestCheckpoint(ModelCheckpoint):
    """Write `best.ckpt` at the lowest `val/loss` so far, or `best_0001000.ckpt` if several are kept.

    Args:
        dirpath: folder of the checkpoints.
        save_top_k: number of checkpoints to keep; -1 for one per validation, 0 for none.
    """

    def __init__(self, dirpath: str | Path, save_top_k: int = 1) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best" if save_top_k == 1 else "best_{step:07d}",
            monitor="val/loss",
            save_top_k=save_top_k,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def forget(self) -> None:
        """Write the next checkpoint, whatever its loss."""
        self.best_k_models, self.kth_best_model_path, self.best_model_score = {}, "", None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning forgets the lowest loss if the run was moved.
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})
