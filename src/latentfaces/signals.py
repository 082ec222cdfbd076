"""Signals that end a command in order."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(SystemExit):
    """A signal has ended the command, with the exit status that a shell gives it: 128 and its number.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.saved: tuple[int, Path] | None = None
        """Step and checkpoint, where one was written."""


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context the signals go to a handler."""
    if threading.current_thread() is not threading.main_thread():  # no other may ask for signals
        yield
        return
    # What the shell has told this process to ignore, as it does for jobs in its background, stays ignored.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)


def stop(number: int, frame: FrameType | None) -> None:
    """The handler that ends the command where it is; the next signal then ends it at once.

    Raises:
        Stopped: always.
    """
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)
