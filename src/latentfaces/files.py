"""Files that are whole or not there, and made by one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import BaseFileLock, FileLock


@contextmanager
def written_whole(path: Path, previous: Path | None = None) -> Iterator[IO[bytes]]:
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


def made_alone(path: Path) -> BaseFileLock:
    """A context that other processes wait for, such as jobs of a sweep that need the same file or folder `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))
