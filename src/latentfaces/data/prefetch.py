"""The next batch is made while the last one is used, in a thread or in processes."""

import time
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from latentfaces.errors import UserError

DONE = object()


class Prefetched:
    """A loader whose next batch is fetched in one thread.

    Gathering a batch from a pack takes microseconds a picture and lets go of the interpreter; worker processes
    would spend ten times as long on handing it over.

    Args:
        loader: anything with a length that gives batches.
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


def lost_worker(error: Exception) -> UserError:
    """What to do about it, in a sentence."""
    return UserError(
        f"a loading process was lost, most often because memory or /dev/shm is full ({error}): lower "
        "data.num_workers (0 is the fastest for packed data)"
    )


class Workers:
    """A loader with worker processes; one that is killed is told in words, with the remedy.

    Args:
        loader: the library's loader.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self.waited = 0.0
        """Seconds that the consumer has waited for batches."""

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            batches = iter(self.loader)
            while True:
                asked = time.perf_counter()
                batch = next(batches, DONE)
                self.waited += time.perf_counter() - asked
                if batch is DONE:
                    return
                yield batch
        except UserError as error:  # with the worker's traceback before it, in the library's words
            raise UserError(str(error).strip().splitlines()[-1].partition("UserError: ")[2] or str(error)) from error
        except (RuntimeError, ConnectionError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            raise lost_worker(error) from error
