"""Checkpoints that neither a crash nor a full disk can break, and a log that a resume does not erase."""

import csv
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from latentfaces.errors import UserError, no_room
from latentfaces.files import atomic_write
from latentfaces.ranks import is_main_process, whole


class DiskFullError(UserError):
    """A file could not be written; what it held before is untouched.

    Args:
        path: the file.
        reason: what the system said.
    """

    def __init__(self, path: Path, reason: str) -> None:
        free = shutil.disk_usage(path.parent).free
        super().__init__(
            f"{path} was not written: {reason[0].lower()}{reason[1:]} ({free / 1e6:.0f} MB are free there). What it "
            "held before is untouched: make room, or move the run with hydra.run.dir=..."
        )


def save_whole(content: Any, path: Path, previous: Path | None = None) -> None:
    """`torch.save`: the target is always the old file or the new one, whole.

    Args:
        content: what to save.
        path: the target.
        previous: the name that the old file gets, if it is to be kept.

    Raises:
        DiskFullError: there is no room for it.
    """
    try:
        with atomic_write(path, previous) as file:
            torch.save(content, file)
    except Exception as error:
        if (reason := no_room(error)) is None:
            raise
        raise DiskFullError(path, reason) from error


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a plain state dict, on the CPU: the first rank does; where weights are sharded, all must call this."""
    state = gathered(module.state_dict())
    if is_main_process():
        save_whole(state, path)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors on the CPU, at the first rank alone; where they are sharded, all ranks must call this."""
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():  # one by one: all of them together may be more than a device holds
        tensor = whole(tensor)
        if is_main_process():
            kept[name] = tensor.cpu()
    return kept


def damage(path: Path) -> str | None:
    """Return why a file of `torch.save` is damaged, by the CRC-32 of its records, or None."""
    if not path.exists():
        return "it is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except Exception as error:  # a flipped bit may ask for a compression or an encryption that does not exist
        return "it is empty" if path.stat().st_size == 0 else f"{error}".rstrip(".").lower()
    return record and f"its part {record} has changed since it was written"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes as `save_whole` does, and keeps the last.ckpt of before this one as last.previous.ckpt.

    The library writes to the system's temporary folder and moves; where that is another file system (a mounted drive,
    a cluster's scratch), the move copies, and a kill in the middle of it destroys the last good checkpoint.

    Args:
        on_full_disk: "skip" the checkpoint with a warning, or "fail".
    """

    def __init__(self, on_full_disk: Literal["skip", "fail"] = "skip") -> None:
        self.on_full_disk = on_full_disk
        self.skipped = False
        """Whether the last one that was due could not be written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        with self.full_disk_survived():
            save_whole(checkpoint, target, target.with_stem("last.previous") if target.stem == "last" else None)

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

    @contextmanager
    def full_disk_survived(self) -> Iterator[None]:
        """Within this context a `DiskFullError` is only told, if so chosen; the rest of the context is left out."""
        self.skipped = False
        try:
            yield
        except DiskFullError as error:
            self.skipped = True
            if self.on_full_disk == "fail":
                raise
            print(f"WARNING: {error}. Training goes on, as on_full_disk=skip.", file=sys.stderr)


def full_disk_survived(trainer: Trainer) -> AbstractContextManager[None]:
    """Survive a full disk while writing files other than checkpoints, if `on_full_disk=skip`."""
    io = trainer.strategy.checkpoint_io
    return io.full_disk_survived() if isinstance(io, AtomicCheckpointIO) else nullcontext()


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

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.earlier:
            rows = [row for row in self.earlier if step is None or int(row["step"]) < step]
            self.experiment.metrics.extend(rows)
            self.earlier = []
        super().log_metrics(metrics, step)
