"""A run that is told to end leaves everything that it needs to go on."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from latentfaces.ranks import DelayedAllReduce, all_reduce_max
from latentfaces.signals import Stopped, handle_signals
from latentfaces.training.callbacks.checkpoints import LastCheckpoint
from latentfaces.training.checkpoint import AtomicCheckpointIO


class GracefulStop(Checkpoint):
    """Keeps the last state of training in `path`: when training is over, or when a signal ends it.

    A signal is only noted. After each step, and before each batch of a validation, the ranks tell one another, and
    all of them leave training, save and end together, whichever of them it was sent to. Where there is nothing to
    save, before and after training, it ends the run at once. So does a second Ctrl-C, everywhere.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.received, self.told = 0, DelayedAllReduce()
        self.process = os.getpid()
        self.looping = self.saving = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context signals are heard."""
        with handle_signals(self.note):
            yield

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if os.getpid() != self.process or self.received:  # a loading process, forked from this one
            return
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if not self.looping:
            raise Stopped(number)
        said = f"{signal.Signals(number).name}: saving; Ctrl-C ends at once\n"
        os.write(2, said.encode())  # not print, whose buffer may be in use

    def check(self, trainer: Trainer) -> None:
        """End here on all ranks, if one of them has got a signal."""
        self.end_by(all_reduce_max(self.received, trainer.strategy.root_device)())

    def end_by(self, number: float) -> None:
        """End here if that is a signal."""
        if number:
            raise Stopped(int(number))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The library's handler waits for the other ranks inside the handler, which deadlocks unless all of them get
        # the signal; and it hears only the first rank's, by a broadcast in each step, which ours takes the place of.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.looping = self.saving = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.check_between_steps(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.looping = True

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.check_between_steps(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.saving:  # one beside training
            self.leave(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.looping = True

    def on_test_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.check(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.leave(trainer)

    def check_between_steps(self, trainer: Trainer) -> None:
        """End here, unless gradients have been added for a step that is still to be taken: no checkpoint holds them."""
        # Lightning has no public name for whether this batch completes a step.
        if not (self.saving and trainer.fit_loop.epoch_loop._should_accumulate()):
            self.end_by(self.told.all_reduce_max(self.received, trainer.strategy.root_device))

    def leave(self, trainer: Trainer) -> None:
        """From here on a signal ends the run at once."""
        self.saving = False
        self.check(trainer)
        self.looping = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.check(trainer)
        if any(isinstance(callback, ModelCheckpoint | LastCheckpoint) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path)
        self.leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The average has given the weights back by now: this callback is called after those that save nothing.
        if isinstance(exception, Stopped) and self.saving:
            trainer.save_checkpoint(self.path)
            io = trainer.strategy.checkpoint_io
            if not (isinstance(io, AtomicCheckpointIO) and io.skipped):
                exception.saved = (trainer.global_step, self.path)
        self.looping = self.saving = False
