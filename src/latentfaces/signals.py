"""Signals that end a command."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(SystemExit):
    """Exit after a signal, with the exit status of shells: 128 + its number.

    Args:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.saved: tuple[int, Path] | None = None
        """Step and path of the checkpoint, if one was written."""


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within this context, call `handler` for SIGNALS."""
    if threading.current_thread() is not threading.main_thread():  # other threads may not set handlers
        yield
        return
    # Signals that the shell told this process to ignore, as for background jobs, stay ignored.
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, earlier in previous.items():
            signal.signal(number, earlier or signal.SIG_DFL)


def stop(number: int, frame: FrameType | None) -> None:
    """Handle a signal by ending the command. The next signal kills it.

    Raises:
        Stopped: always.
    """
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise Stopped(number)
