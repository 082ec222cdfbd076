"""Make the next batch in a thread while the last one is used."""

import time
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any

DONE = object()


class Prefetched:
    """Loader whose next batch is fetched in one thread.

    Gathering a batch from a pack takes microseconds per image and releases the GIL. Worker processes would spend ten
    times as long on sending it.

    Args:
        loader: iterable of batches, with a length.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.waited = 0.0
        """Seconds that the consumer has waited for batches."""

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(next, batches, DONE)
            while True:
                asked = time.perf_counter()
                batch = coming.result()
                self.waited += time.perf_counter() - asked
                if batch is DONE:
                    return
                coming = thread.submit(next, batches, DONE)
                yield batch
