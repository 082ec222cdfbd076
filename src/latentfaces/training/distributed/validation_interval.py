"""When to validate: after a whole step, and on all ranks after the same one."""

from typing import Any

from lightning.pytorch import Trainer

from latentfaces.ranks import DelayedAllReduce


class ValidationTimes:
    """Decides in the place of the trainer's own rule, which counts batches, also those that are parts of a step, and
    where a time is set asks each rank's own clock.

    Args:
        trainer: validates every so many steps or minutes; what it does in shares of an epoch stays as it is.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer: Any = trainer
        self.loop = trainer.fit_loop.epoch_loop
        self.by_library = self.loop._should_check_val_fx
        self.told = DelayedAllReduce()
        self.asked_at, self.answer = -1, False

    def __call__(self, data_fetcher: Any) -> bool:
        """Whether a validation comes now, which all ranks must ask after each batch."""
        trainer = self.trainer
        by_time = trainer._val_check_time_interval is not None
        if not by_time and (
            trainer.check_val_every_n_epoch is not None or isinstance(trainer.val_check_interval, float)
        ):
            return self.by_library(data_fetcher)
        if self.loop._should_accumulate():  # no checkpoint holds a part of a step
            return False
        if by_time:
            return self.is_time(data_fetcher)
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        return trainer.enable_validation and (stops or trainer.global_step % trainer.val_check_interval == 0)

    def is_time(self, data_fetcher: Any) -> bool:
        """Whether it is on any rank; the same answer after the same batch, for whoever asks."""
        batch = self.loop.batch_progress.total.ready
        if batch != self.asked_at:
            self.asked_at = batch
            own = float(self.by_library(data_fetcher))
            self.answer = self.told.all_reduce_max(own, self.trainer.strategy.root_device) > 0
            if self.answer:  # what was asked meanwhile is answered by this validation
                self.told = DelayedAllReduce()
        return self.answer


def validate_after_whole_steps(trainer: Trainer) -> None:
    """Let `ValidationTimes` decide where the trainer's own rule would not do."""
    if trainer.world_size > 1 or trainer.accumulate_grad_batches > 1:
        trainer.fit_loop.epoch_loop._should_check_val_fx = ValidationTimes(trainer)  # type: ignore[method-assign]
