"""Report page of a run, during training."""

import contextlib
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from latentfaces.bounds import NonNegativeFloat
from latentfaces.errors import UserError
from latentfaces.report import write_report
from latentfaces.run import CONFIG
from latentfaces.signals import Stopped
from latentfaces.training.checkpoint import full_disk_survived


class Report(Callback):
    """Write `report.html` after validations and after an error.

    It is not written after a signal: the few seconds left are for the checkpoint.

    Args:
        folder: folder of the run.
        every_n_minutes: shortest interval, 0 for each validation. A page takes some seconds.
    """

    def __init__(self, folder: str | Path, every_n_minutes: NonNegativeFloat = 5.0) -> None:
        self.folder, self.every_n_minutes = Path(folder), every_n_minutes
        self.written = time.monotonic()

    def write(self, trainer: Trainer) -> None:
        """Write the page, after the rows that loggers have in memory."""
        if (self.folder / CONFIG).exists():
            for logger in trainer.loggers:
                logger.save()
            with full_disk_survived(trainer, self.folder / "report.html"):
                write_report(self.folder)
        self.written = time.monotonic()

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = time.monotonic() - self.written >= 60 * self.every_n_minutes
        if due and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.write(trainer)

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped):
            return
        with contextlib.suppress(OSError, UserError):  # the first error is the one to report
            self.write(trainer)
