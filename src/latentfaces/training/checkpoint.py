"""Checkpoints that a crash cannot break, and a log that a resume does not erase."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from latentfaces.files import written_whole


def save_whole(content: Any, path: Path) -> None:
    """`torch.save` beside the target, then rename: the target is always the old file or the new one, whole."""
    with written_whole(path) as file:
        torch.save(content, file)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a plain state dict, on the CPU."""
    save_whole({name: value.cpu() for name, value in module.state_dict().items()}, path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes as `save_whole` does.

    The library writes to the system's temporary folder and moves; where that is another file system (a mounted drive,
    a cluster's scratch), the move copies, and a kill in the middle of it destroys the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        for orphan in target.parent.glob("*.ckpt.partial"):
            orphan.unlink()
        save_whole(checkpoint, target)


class ResumableCSVLogger(CSVLogger):
    """`metrics.csv` in `folder`; a resumed run keeps the rows up to the step it goes on from.

    Args:
        folder: the run's folder.
        flush_logs_every_n_steps: steps between writes to disk.
    """

    def __init__(self, folder: str | Path, flush_logs_every_n_steps: int = 100) -> None:
        self.path = Path(folder) / "metrics.csv"
        self.earlier = self.read() if self.path.exists() else []
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)

    def read(self) -> list[dict[str, Any]]:
        """All rows, as text, without empty cells."""
        with self.path.open(newline="") as file:
            return [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(file)]

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.earlier:
            rows = [row for row in self.earlier if step is None or int(row["step"]) < step]
            self.experiment.metrics.extend(rows)
            self.earlier = []
        super().log_metrics(metrics, step)
