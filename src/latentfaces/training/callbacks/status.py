"""Progress bar on a terminal, and status lines in a log file."""

import contextlib
import resource
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from latentfaces.training.base_module import BaseModule

LOG_SECONDS, LOG_SHARE = 60, 0.1
"""Shortest interval of lines without a terminal: in seconds, and as a fraction of the elapsed time."""


class Status(Callback):
    """Show a progress bar on a terminal, lines in a log file, and a line after each validation in both.

    All show step, elapsed and remaining time, images per second, time spent waiting for data, peak memory and loss.
    After a validation follows the verdict, if it is new and recommends a change.
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
        self.verdict: str | None = None
        self.started = self.started_share = 0.0
        self.steps = self.validating_seconds = self.validation_started = 0.0
        self.printed = 0.0

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started, self.started_share = time.monotonic(), self.share(pl_module)
        self.printed = self.started
        self.steps = self.validating_seconds = 0
        self.bar.start()
        self.task = self.bar.add_task("Training", total=1.0, status="")

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.steps += 1
        if self.bar.disable:
            now = time.monotonic()
            if now - self.printed >= max(LOG_SECONDS, LOG_SHARE * (now - self.started)):
                self.print(self.status(trainer, pl_module))
        elif self.task is not None and self.steps % 5 == 0:
            self.bar.update(self.task, completed=self.share(pl_module), status=self.status(trainer, pl_module))

    def print(self, line: str) -> None:
        """Print a line."""
        self.printed = time.monotonic()
        with contextlib.suppress(OSError):  # stdout may be a file on a full disk
            self.console.print(line, highlight=False, soft_wrap=True)

    @staticmethod
    def share(pl_module: LightningModule) -> float:
        """Return the completed fraction of training."""
        assert isinstance(pl_module, BaseModule)
        return pl_module.progress()

    def status(self, trainer: Trainer, pl_module: LightningModule) -> str:
        """Return step, time, speed, waiting, memory and loss as text."""
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
        self.print(line)
        assert isinstance(pl_module, BaseModule)
        verdict = pl_module.verdict()
        if verdict is not None and verdict != self.verdict and not pl_module.healthy:
            self.print(verdict)
        self.verdict = verdict

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bar.stop()


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of a GPU, or the memory of this process, which keeps what it frees, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    path = Path("/proc/self/status")
    anonymous = path.read_text().partition("RssAnon:")[2].split() if path.exists() else []
    if anonymous:  # and not the peak of all pages, which has those of the mapped pack
        return 1024.0 * int(anonymous[0])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
