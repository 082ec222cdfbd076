"""What a person can put right."""


class UserError(Exception):
    """A mistake of the person at the keyboard: one sentence that names the file or key, and the remedy.

    The commands print it without a traceback and exit with status 2.
    """
