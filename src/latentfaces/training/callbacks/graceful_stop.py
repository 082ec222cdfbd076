"""Graceful stop: a checkpoint after a signal and at the end of training."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from latentfaces.ranks import DelayedAllReduce, all_reduce_max
from latentfaces.signals import Stopped
from latentfaces.training.callbacks.checkpoints import LastCheckpoint
from latentfaces.training.checkpoint import AtomicCheckpointIO


class GracefulStop(Checkpoint):
    """Write a checkpoint at the end of training, or when a signal stops it.

    The handler only notes the signal. After each step, and before each validation batch, all ranks exchange it. Then
    they leave training, save and exit together, whichever rank received it. Before and after training, where there is
    nothing to save, a signal ends the run at once. A second Ctrl-C always does.

    Args:
        path: path of the checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.received, self.exchange = 0, DelayedAllReduce()
        self.looping = self.saving = self.accumulating = False
        self.last_step = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal; see `handle_signals`."""
        if self.received:
            return
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.looping:
            raise Stopped(number)
        # Not `print`, whose buffer may be in use.
        os.write(2, f"{signal.Signals(number).name}: saving; Ctrl-C ends at once\n".encode())

    def check(self, trainer: Trainer) -> None:
        """Stop on all ranks if one of them received a signal."""
        self.stop_by(all_reduce_max(self.received, trainer.strategy.root_device)())

    def stop_by(self, number: float) -> None:
        """Stop if the number is that of a signal."""
        if number:
            raise Stopped(int(number))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's handler waits for the other ranks, a deadlock unless all of them receive the signal. And it needs
        # a broadcast of rank 0's signal in each step. There is no option to turn either off.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.looping = self.saving = True
        self.last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.accumulating = trainer.global_step == self.last_step
        self.last_step = trainer.global_step
        self.check_between_steps(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.looping = True

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.check_between_steps(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.saving:  # a validation outside training
            self.leave(trainer)

    on_test_start = on_validation_start

    def on_test_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.check(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.leave(trainer)

    def check_between_steps(self, trainer: Trainer) -> None:
        """Check for a signal, except while gradients are accumulated: no checkpoint holds them."""
        if not (self.saving and self.accumulating):
            self.stop_by(self.exchange.all_reduce_max(self.received, trainer.strategy.root_device))

    def leave(self, trainer: Trainer) -> None:
        """Check for a signal. From here on, a signal ends the run at once."""
        self.saving = False
        self.check(trainer)
        self.looping = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)
        if any(isinstance(callback, ModelCheckpoint | LastCheckpoint) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
        self.leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # EMA has swapped the weights back: checkpoint callbacks are called after all others.
        if isinstance(exception, Stopped) and self.saving:
            trainer.save_checkpoint(self.path)
            io = trainer.strategy.checkpoint_io
            if not (isinstance(io, AtomicCheckpointIO) and io.skipped):
                exception.saved = (trainer.global_step, self.path)
        self.looping = self.saving = False
