"""The run's page, while the run goes on."""

import contextlib
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from latentfaces.errors import UserError
from latentfaces.report import write_report
from latentfaces.run import CONFIG
from latentfaces.signals import Stopped


class Report(Callback):
    """Writes `report.html` after a validation, and where training fails; its end writes it anyway.

    Not where a signal stops it: then there may be seconds left, and they are the checkpoint's.

    Args:
        folder: the run's.
        every_n_minutes: at the most as often, since a page takes some seconds.
    """

    def __init__(self, folder: str | Path, every_n_minutes: float = 5.0) -> None:
        if every_n_minutes < 0:
            raise ValueError(f"every_n_minutes={every_n_minutes} must be at least 0")
        self.folder, self.every_n_minutes = Path(folder), every_n_minutes
        self.written = time.monotonic()

    def write(self, trainer: Trainer) -> None:
        """Write it, with what the loggers have yet in memory."""
        if (self.folder / CONFIG).exists():
            for logger in trainer.loggers:
                logger.save()
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
        with contextlib.suppress(OSError, UserError):  # what went wrong is to be told, not this
            self.write(trainer)
