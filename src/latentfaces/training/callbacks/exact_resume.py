"""What a checkpoint must say, beside what the library writes into it, for a run to go on as if nothing had been."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class ExactResume(Callback):
    """Validations, the numbering of the log and the best checkpoint survive a resume.

    Comes first of all callbacks: those that log at the beginning of a step find its number right.

    A checkpoint of a step that a validation follows, or of the middle of that validation, resumes with the whole of
    it; the library would leave it out, and with it a row of the log and a chance to be the best. And where a run's
    folder was moved, its best checkpoint is known in its new place, and is beaten only by a better one.
    """

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        # The library counts a step too many where a run goes on from a step with a validation that is over.
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
        if due:
            self.put_before_validation(checkpoint["loops"]["fit_loop"])

    @staticmethod
    def put_before_validation(loops: dict[str, Any]) -> None:
        """Make the progress that of a step which is over, and of a validation that broke off in its first batch."""
        for count in ("total", "current"):
            steps = loops["epoch_loop.batch_progress"][count]
            steps["completed"] = steps["processed"]
        loops["epoch_loop.val_loop.batch_progress"] = {
            "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
            "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
            "is_last_batch": False,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None and state["dirpath"] != callback.dirpath:
                assert callback.dirpath is not None
                here = Path(callback.dirpath)
                for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[name] = state[name] and str(here / Path(state[name]).name)
                state["best_k_models"] = {
                    str(here / Path(path).name): score for path, score in state["best_k_models"].items()
                }
                state["dirpath"] = callback.dirpath
