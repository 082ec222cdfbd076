"""State that an exact resume needs, in addition to Lightning's checkpoint."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.training.base_module import BaseModule


class ExactResume(Callback):
    """Keep validations, step numbers of the log and learning rates right over a resume.

    It is the first callback, so that step numbers and rates are right for the others.

    Lightning does not repeat a validation that was due, or running, when the checkpoint was written. This callback
    makes it repeat the full validation.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if isinstance(pl_module, BaseModule) and trainer.global_step == pl_module.resumed_at:
            pl_module.reset_rates()
        # Lightning counts one step too many after a resume from a step with a completed validation.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        epoch_loop = trainer.fit_loop.epoch_loop
        steps, validation = epoch_loop.batch_progress.current, epoch_loop.val_loop.batch_progress.current
        if trainer.validating:
            due = validation.ready > validation.completed
        else:
            at_step = trainer.training and steps.processed > steps.completed  # type: ignore[attr-defined]
            # Only Lightning's own rule knows whether a validation follows this step.
            due = at_step and epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        if not due:
            return
        # The step is completed, and the validation stopped in its first batch.
        loops = checkpoint["loops"]["fit_loop"]
        for count in loops["epoch_loop.batch_progress"]["total"], loops["epoch_loop.batch_progress"]["current"]:
            count["completed"] = count["processed"]
        loops["epoch_loop.val_loop.batch_progress"] = {
            "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
            "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
            "is_last_batch": False,
        }
