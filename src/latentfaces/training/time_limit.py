"""Limit of the training time."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from latentfaces.ranks import DelayedAllReduce


class TimeLimit(Timer):
    """End training after `trainer.max_time`, at the same step on every rank.

    Lightning's Timer broadcasts an object in each step. Here the ranks agree on the largest elapsed time, as they do on
    stops.

    Args:
        duration: days:hours:minutes:seconds, summed over resumes.
    """

    def __init__(self, duration: str) -> None:
        super().__init__(duration)
        self.limit = float(self.time_remaining() or 0)
        self.clock = DelayedAllReduce()
        self.agreed: float | None = None
        """Largest elapsed time of all ranks, in seconds; None on one rank."""

    @property
    def state_key(self) -> str:
        return Timer.__qualname__  # as in the checkpoints of earlier versions

    @property
    def progress(self) -> float:
        """Fraction of the time that has passed."""
        return (self.time_elapsed() if self.agreed is None else self.agreed) / self.limit

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.world_size > 1:  # or one rank might lower its learning rate, or gather its weights, a step before
            self.agreed = self.clock.all_reduce_max(self.time_elapsed(), trainer.strategy.root_device)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        trainer.should_stop = trainer.should_stop or self.progress >= 1
