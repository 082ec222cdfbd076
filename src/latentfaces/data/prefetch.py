"""The next batch is made while the last one is used."""

from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any

DONE = object()


class Prefetched:
    """A loader whose next batch is fetched in one thread.

    Gathering a batch from a memory map takes microseconds a picture and lets go of the interpreter; worker processes
    would spend ten times as long on handing it over.

    Args:
        loader: anything with a length that gives batches.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(next, batches, DONE)
            while (batch := coming.result()) is not DONE:
                coming = thread.submit(next, batches, DONE)
                yield batch
