"""Atomic writes, locks between processes, and free space."""

import contextlib
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from latentfaces.errors import UserError

LOCK_NOTICE = 5
"""Seconds after which a wait for a lock is printed."""


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a file that gets the name `path` only when it is complete and on the disk.

    Until then it is `<path>.partial`. A kill, a full disk or an error leaves the old file.

    Args:
        path: the file.
        previous: name that the old file gets, if it is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def append(path: Path, text: str) -> None:
    """Append text to a file. After an error the file is as it was before."""
    size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(text.encode())
    except OSError:
        os.truncate(path, size)
        raise


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the complete rows of a CSV. A kill or a full disk may have cut others."""
    data = path.read_bytes()
    text = data[: data.rfind(b"\n") + 1].decode()
    rows = csv.DictReader(io.StringIO(text, newline=""))  # keeps the line breaks inside of cells
    return [row for row in rows if None not in row and None not in row.values()]


def read_json(path: Path) -> dict[str, Any]:
    """Read an object of a JSON file. It is empty if the file is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Let one process at a time write the file or folder `path`. A process that ends releases its lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        held = lock.acquire(LOCK_NOTICE)
    except Timeout:
        print(f"Waiting for another process that writes {path} (it holds {lock.lock_file})", flush=True)
        held = lock.acquire()
    with held:
        yield


def require_space(path: Path, num_bytes: float, purpose: str, remedy: str = "make room") -> None:
    """Check that the disk of `path`, which need not exist yet, has enough free space.

    Raises:
        UserError: it has less; with both sizes.
    """
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise UserError(
            f"{purpose} needs {num_bytes / 1e9:.1f} GB in {path.parent}, only {free / 1e9:.1f} are free: {remedy}"
        )


def drop_if_empty(folder: str | Path) -> None:
    """Remove the folder that Hydra created for a rejected run, and its parents up to outputs/, while they are empty."""
    path = Path(folder)
    names = [parent.name for parent in path.parents]
    above = path.parents[: names.index("outputs") + 1] if "outputs" in names else ()
    with contextlib.suppress(OSError):  # missing or not empty
        for empty in (path, *above):
            empty.rmdir()
