"""What a person can put right."""

ERROR_LOG = "error.log"
"""What a failed job of a sweep leaves in its folder: one sentence and, for a fault of the program's, its traceback."""


class UserError(Exception):
    """A mistake of the person at the keyboard: one sentence that names the file or key, and the remedy.

    The commands print it without a traceback and exit with status 2.
    """
