"""Time of training, and its limit."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from latentfaces.ranks import DelayedAllReduce


class TimeLimit(Timer):
    """Measure the time of training, and end it after `trainer.max_time`, at the same step on every rank.

    Lightning's Timer broadcasts an object in each step. Here the ranks agree on the largest elapsed time, as they do on
    stops. It is the first callback, so that the others read that time.

    Args:
        duration: days:hours:minutes:seconds, summed over resumes, or None for no limit.
    """

    def __init__(self, duration: str | None = None) -> None:
        super().__init__(duration)
        self.limit = self.time_remaining() or math.inf
        self.clock = DelayedAllReduce()
        self.agreed: float | None = None
        """Largest elapsed time of all ranks, in seconds; None on one rank."""

    @property
    def progress(self) -> float:
        """Fraction of the time that has passed."""
        return (self.time_elapsed() if self.agreed is None else self.agreed) / self.limit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.agree(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.agree(trainer)

    def agree(self, trainer: Trainer) -> None:
        """Agree with the other ranks on the elapsed time."""
        # Otherwise one rank might lower its learning rate, or gather its weights, a step before the others.
        if trainer.world_size > 1 and self.limit < math.inf:
            self.agreed = self.clock.all_reduce_max(self.time_elapsed(), trainer.strategy.root_device)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        trainer.should_stop = trainer.should_stop or self.progress >= 1
