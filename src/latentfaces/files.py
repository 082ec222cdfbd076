"""Atomic writes, appends to CSV files, and file locks."""

import contextlib
import csv
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import BaseFileLock, FileLock

from latentfaces.errors import UserError


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write, which bears the name `path` only once it is complete and on the disk.

    Until then it is `<path>.partial`: after a kill, a full disk or an error `path` is the old file, or is not there.

    Args:
        path: the file.
        previous: the name that the old file gets, if it is to be kept.
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
        with path.open("a", newline="") as file:
            file.write(text)
    except OSError:
        os.truncate(path, size)
        raise


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read the complete rows of a CSV. A kill or a full disk may have cut others."""
    text = path.read_text()
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [row for row in rows if None not in row and None not in row.values()]


def file_lock(path: Path) -> BaseFileLock:
    """A context that other processes wait for, such as jobs of a sweep that need the same file or folder `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def require_space(path: Path, num_bytes: float, purpose: str, remedy: str = "make room") -> None:
    """Refuse to begin what the disk of `path`, which need not exist yet, cannot hold.

    Raises:
        UserError: saying what is needed and what is free.
    """
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise UserError(
            f"{purpose} needs {num_bytes / 1e9:.1f} GB in {path.parent}, only {free / 1e9:.1f} are free: {remedy}"
        )


def drop_if_empty(folder: str | Path) -> None:
    """Take away the folder that Hydra made for a run that was refused, and those above, to outputs/, while empty."""
    path = Path(folder)
    names = [parent.name for parent in path.parents]
    above = path.parents[: names.index("outputs") + 1] if "outputs" in names else ()
    with contextlib.suppress(OSError):  # not there, or not empty
        for empty in (path, *above):
            empty.rmdir()
