"""Checkpoints and weight files that survive a crash and a full disk."""

import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from torch import nn

from latentfaces.errors import UserError, no_room
from latentfaces.files import atomic_write
from latentfaces.ranks import is_main_process
from latentfaces.training.distributed.sharding import gathered


class DiskFullError(UserError):
    """A file could not be written. Its earlier content is unchanged.

    Args:
        path: the file.
        reason: message of the system.
    """

    def __init__(self, path: Path, reason: str) -> None:
        free = shutil.disk_usage(path.parent).free
        super().__init__(
            f"{path} was not written: {reason[0].lower()}{reason[1:]} ({free / 1e6:.0f} MB are free there). "
            "Its earlier content is unchanged. Free some space, or move the run with hydra.run.dir=FOLDER."
        )

    def warn(self, consequence: str) -> None:
        """Print a warning."""
        with suppress(OSError):  # stderr may be a file on the same disk
            print(f"WARNING: {self} {consequence}", file=sys.stderr)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Within this context, raise a DiskFullError for `path` if the disk is full."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or (reason := no_room(error)) is None:
            raise
        raise DiskFullError(path, reason) from error


def atomic_save(content: Any, path: Path, previous: Path | None = None) -> None:
    """Save with `torch.save`, atomically.

    Args:
        content: what to save.
        path: the file.
        previous: new name of the earlier file, if it is kept.

    Raises:
        DiskFullError: the disk is full.
    """
    with full_disk_named(path), atomic_write(path, previous) as file:
        torch.save(content, file)


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a plain state dict on rank 0. For sharded weights, every rank must call it."""
    state = gathered(module.state_dict())
    if is_main_process():
        atomic_save(state, path)


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
    """Write checkpoints atomically. Keep the last.ckpt before the new one as last.previous.ckpt.

    Lightning writes to the system's temporary folder and moves the file. On another file system, the move copies, and a
    kill during the copy destroys the last good checkpoint.

    Args:
        on_full_disk: "skip" the file with a warning, or "fail".
    """

    def __init__(self, on_full_disk: Literal["skip", "fail"] = "skip") -> None:
        self.on_full_disk = on_full_disk
        self.skipped = False
        """True if the last file could not be written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        target = Path(path)
        with self.full_disk_survived(target):
            atomic_save(checkpoint, target, target.with_stem("last.previous") if target.stem == "last" else None)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        # Lightning passes no location, and with None every rank would load to the GPU that saved.
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)  # whatever the caller passed
        except UnpicklingError as error:
            raise UserError(
                f"{path} was not loaded: it could run code. Checkpoints of this project hold only numbers and plain "
                "containers."
            ) from error

    @contextmanager
    def full_disk_survived(self, path: Path) -> Iterator[None]:
        """Within this context, skip the rest if the disk is full, with a warning that names the file."""
        self.skipped = False
        try:
            with full_disk_named(path):
                yield
        except DiskFullError as error:
            self.skipped = True
            if self.on_full_disk == "fail":
                raise
            error.warn("Training continues (on_full_disk=skip).")


def full_disk_survived(trainer: Trainer, path: Path) -> AbstractContextManager[None]:
    """Survive a full disk while writing a file other than a checkpoint, if `on_full_disk=skip`."""
    io = trainer.strategy.checkpoint_io
    return io.full_disk_survived(path) if isinstance(io, AtomicCheckpointIO) else nullcontext()
