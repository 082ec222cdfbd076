"""Errors and warnings for the user."""

import errno
import io
import sys

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ERROR_LOG = "error.log"
"""File with the error of a failed job of a sweep: one line and, for a bug, the traceback."""


class UserError(Exception):
    """A mistake of the user. The commands print it without a traceback and exit with status 2.

    Args:
        message: names the file or key, and the remedy. Names that are not UTF-8 are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.encode(errors="backslashreplace").decode())


def one_line(text: object) -> str:
    """Return a text that may be untrusted without line breaks and control characters, which would spoil messages."""
    line = " ".join(str(text).split())
    return line if line.isprintable() else ascii(line)[1:-1]


def reason(error: BaseException) -> str:
    """Return the start of the message of an error of another package, as one line."""
    return one_line(error)[:160]


def missing_extra(purpose: str, extra: str, otherwise: str = "") -> UserError:
    """Return the error for a package that is not installed: what needs it, its extra, and another way."""
    return UserError(f"{purpose} needs an extra. Run `pip install 'latentfaces[{extra}]'`{otherwise}.")


def no_room(error: BaseException | None) -> str | None:
    """Return the system's message for a full disk, which torch wraps in its own errors; None for other errors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.strerror
        error = error.__context__
    return None


def escape_stdout() -> None:
    """Escape what stdout cannot encode, such as file names that are not UTF-8, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def warn(sentence: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {sentence}", file=sys.stderr)
