"""What a person can put right."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ERROR_LOG = "error.log"
"""What a failed job of a sweep leaves in its folder: one sentence and, for a fault of the program's, its traceback."""


class UserError(Exception):
    """A mistake of the person at the keyboard: one sentence that names the file or key, and the remedy.

    The commands print it without a traceback and exit with status 2.
    """


def no_room(error: BaseException | None) -> str | None:
    """What the system said of a full disk, which torch hides behind errors of its own; None for any other fault."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.strerror
        error = error.__context__
    return None
