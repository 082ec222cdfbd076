"""Room on the disk, before it is needed."""

import shutil
from pathlib import Path

from latentfaces.errors import UserError


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
