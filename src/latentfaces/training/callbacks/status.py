"""How training goes, in one bar and in words."""

import os
import resource
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from latentfaces.training.base_module import BaseModule

LOG_SECONDS, LOG_SHARE = 60, 0.01
"""Without a terminal a line comes after so much time and so much of the training: at most a hundred beside those of
validations."""


class Status(Callback):
    """On a terminal a bar over all of training, in a log file now and then a line; after each validation one in both.

    All tell the same: step, time gone and time to go, images per second, the share of time spent waiting for data, the
    memory used at most, and the loss. With the environment variable CI set only validations are told.
    """

    def __init__(self) -> None:
        self.console = Console()
        self.quiet = bool(os.environ.get("CI"))
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[status]}"),
            console=self.console,
            disable=self.quiet or not self.console.is_terminal,
            transient=True,
        )  # fmt: skip
        self.task: TaskID | None = None
        self.started = self.started_share = 0.0
        self.steps = self.validating_seconds = self.validation_started = 0.0
        self.told, self.told_share = 0.0, 0.0

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started, self.started_share = time.monotonic(), self.share(pl_module)
        self.told, self.told_share = self.started, self.started_share
        self.steps = self.validating_seconds = 0
        self.bar.start()
        self.task = self.bar.add_task("Training", total=1.0, status="")

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if self.bar.disable:
            self.tell_if_due(trainer, pl_module)
        elif self.task is not None and self.steps % 5 == 0:
            self.bar.update(self.task, completed=self.share(pl_module), status=self.status(trainer, pl_module))

    def tell_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A line, where one is due."""
        now = time.monotonic()
        if self.quiet or now - self.told < LOG_SECONDS or self.share(pl_module) - self.told_share < LOG_SHARE:
            return
        self.tell(self.status(trainer, pl_module), pl_module)

    def tell(self, line: str, pl_module: LightningModule) -> None:
        """Write a line."""
        self.told, self.told_share = time.monotonic(), self.share(pl_module)
        self.console.print(line, highlight=False, soft_wrap=True)

    @staticmethod
    def share(pl_module: LightningModule) -> float:
        """Share of training that is over."""
        assert isinstance(pl_module, BaseModule)
        return pl_module.progress()

    def status(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Step, time, speed, waiting, memory and loss in words."""
        seconds, share = time.monotonic() - self.started, self.share(pl_module)
        training = max(seconds - self.validating_seconds, 1e-9)
        gained = share - self.started_share
        to_go = f", {timedelta(seconds=round(seconds * (1 - share) / gained))} to go" if gained > 0 else ""
        batch_size = trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
        waited = getattr(trainer.train_dataloader, "waited", None)
        loss = trainer.callback_metrics.get("train/loss")
        parts = [
            f"step {trainer.global_step:,}",
            f"{timedelta(seconds=round(seconds))}{to_go}",
            f"{self.steps * batch_size / training:.0f} images/s",
            *([f"{waited / training:.0%} waiting for data"] if waited is not None else []),
            f"{peak_memory(pl_module.device) / 1e9:.1f} GB",
            *([f"loss {loss:.4f}"] if loss is not None else []),
        ]
        return " · ".join(parts)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_started = time.monotonic()

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validating_seconds += time.monotonic() - self.validation_started
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        line = self.status(trainer, pl_module) + "".join(f" · {name} {value:.4g}" for name, value in values.items())
        self.tell(line, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bar.stop()


def peak_memory(device: torch.device) -> float:
    """Bytes at the most so far: of the device where it is a GPU, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
