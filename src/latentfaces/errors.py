"""What a person can put right."""

import errno
import sys
from collections.abc import Sequence

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ERROR_LOG = "error.log"
"""What a failed job of a sweep leaves in its folder: one sentence and, for a fault of the program's, its traceback."""


class UserError(Exception):
    """A mistake of the person at the keyboard: one sentence that names the file or key, and the remedy.

    The commands print it without a traceback and exit with status 2.
    """


def no_room(error: BaseException | None) -> str | None:
    """Return the system's message for a full disk, which torch wraps in its own errors; None for other errors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.strerror
        error = error.__context__
    return None


def warn(sentence: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {sentence}", file=sys.stderr)


def and_others(names: Sequence[str], indices: Sequence[int]) -> str:
    """The first by name, the others by their number."""
    more = len(indices) - 1
    return names[indices[0]] + (f" (as {more} more)" if more else "")
