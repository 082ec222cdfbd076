"""Checkpoints that a crash cannot break, and a log that a resume does not erase."""

import csv
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from latentfaces.errors import UserError


def save_whole(content: Any, path: Path) -> None:
    """`torch.save` beside the target, then rename: the target is always the old file or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


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

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)  # whatever was asked for
        except UnpicklingError as error:
            raise UserError(
                f"{path} is not one of our checkpoints, which hold numbers and plain containers alone: it could run "
                "code, and was not loaded"
            ) from error


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
