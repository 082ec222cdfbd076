"""How training goes, in one bar and in words."""

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from latentfaces.training.stage import Stage


class Status(Callback):
    """On a terminal a bar over the whole training; after each validation a line, for eyes and for log files.

    Both tell step, time gone and time to go, images per second, and the loss.
    """

    def __init__(self) -> None:
        self.console = Console()
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )  # fmt: skip
        self.task: TaskID | None = None
        self.started = self.started_share = 0.0
        self.steps = self.validating_seconds = self.validation_started = 0.0

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        self.started, self.started_share = time.monotonic(), pl_module.progress()
        self.steps = self.validating_seconds = 0
        self.bar.start()
        self.task = self.bar.add_task("Training", total=1.0, status="")

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if self.task is not None and not self.bar.disable and self.steps % 5 == 0:
            self.bar.update(self.task, completed=self.share(pl_module), status=self.status(trainer, pl_module))

    @staticmethod
    def share(pl_module: LightningModule) -> float:
        """Share of training that is over."""
        assert isinstance(pl_module, Stage)
        return pl_module.progress()

    def status(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Step, time, speed and loss in words."""
        seconds, share = time.monotonic() - self.started, self.share(pl_module)
        gained = share - self.started_share
        to_go = f", {timedelta(seconds=round(seconds * (1 - share) / gained))} to go" if gained > 0 else ""
        batch_size = trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
        speed = self.steps * batch_size / max(seconds - self.validating_seconds, 1e-9)
        loss = trainer.callback_metrics.get("train/loss")
        return f"step {trainer.global_step:,} · {timedelta(seconds=round(seconds))}{to_go} · {speed:.0f} images/s" + (
            f" · loss {loss:.4f}" if loss is not None else ""
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_started = time.monotonic()

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validating_seconds += time.monotonic() - self.validation_started
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        line = self.status(trainer, pl_module) + "".join(f" · {name} {value:.4g}" for name, value in values.items())
        self.bar.console.print(line, highlight=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bar.stop()
