"""One batch ahead: the same batches, made while the last is used, and no thread or error is lost."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader

from latentfaces.data.prefetch import Prefetched


class Loader:
    """Ten numbers; notes what it has made, and fails or waits at one of them."""

    def __init__(self, fails_at: int | None = None, waits_at: int | None = None) -> None:
        self.fails_at, self.waits_at = fails_at, waits_at
        self.made: list[int] = []
        self.making, self.go_on = threading.Event(), threading.Event()

    def __len__(self) -> int:
        return 10

    def __iter__(self) -> Iterator[int]:
        for number in range(10):
            if number == self.waits_at:
                self.making.set()
                assert self.go_on.wait(20)
            if number == self.fails_at:
                raise RuntimeError(f"no batch {number}")
            self.made.append(number)
            yield number


def test_batches_and_their_order_are_the_loaders() -> None:
    loader = DataLoader(
        torch.arange(20),  # type: ignore[arg-type]
        batch_size=3,
        shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )
    expected = [batch.tolist() for batch in loader]
    assert loader.generator is not None
    loader.generator.manual_seed(0)
    assert [batch.tolist() for batch in Prefetched(loader)] == expected


def test_length_is_the_loaders() -> None:
    assert len(Prefetched(Loader())) == 10


def test_each_iteration_begins_anew() -> None:
    loader = Prefetched(Loader())
    assert [list(loader), list(loader)] == [list(range(10))] * 2


def test_loader_without_batches_gives_none() -> None:
    assert list(Prefetched([])) == []


def test_none_is_a_batch_like_any_other() -> None:
    assert list(Prefetched([0, None, False])) == [0, None, False]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("waits_at", [1, 5])
def test_next_batch_is_being_made_while_one_is_used(waits_at: int) -> None:
    loader = Loader(waits_at=waits_at)
    batches = iter(Prefetched(loader))
    assert [next(batches) for _ in range(waits_at)] == list(range(waits_at))
    assert loader.making.wait(20)  # nobody has asked for it yet
    loader.go_on.set()
    assert list(batches) == list(range(waits_at, 10))


def test_no_more_than_one_batch_is_made_ahead() -> None:
    loader = Loader()
    for batch in Prefetched(loader):
        assert len(loader.made) <= batch + 2


@pytest.mark.timeout(60)
def test_time_that_the_consumer_waits_is_told() -> None:
    class Slow:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[int]:
            for number in range(3):
                time.sleep(0.1)
                yield number

    waiting, working = Prefetched(Slow()), Prefetched(Slow())
    assert list(waiting) == [0, 1, 2]
    assert waiting.waited >= 0.25  # not 0.3: the thread loads already when the wait begins
    for _ in working:
        time.sleep(0.3)  # meanwhile the next one is made
    assert 0.05 <= working.waited < waiting.waited


@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_error_in_the_loader_reaches_the_consumer_after_the_good_batches(fails_at: int) -> None:
    got: list[int] = []
    with pytest.raises(RuntimeError, match=f"no batch {fails_at}"):
        got.extend(iter(Prefetched(Loader(fails_at))))
    batches = iter(Prefetched(Loader(fails_at)))
    assert [next(batches) for _ in range(fails_at)] == list(range(fails_at))


def threads() -> set[threading.Thread]:
    """Return the threads that Python code has started."""
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}


@pytest.mark.timeout(60)
def test_leaving_early_ends_the_thread() -> None:
    before, loader = threads(), Loader()
    batches = iter(Prefetched(loader))
    assert next(batches) == 0
    batches.close()  # type: ignore[attr-defined]
    assert threads() <= before
    assert loader.made in ([0], [0, 1])


@pytest.mark.timeout(60)
def test_error_of_the_consumer_ends_the_thread() -> None:
    before = threads()

    def use() -> None:
        for batch in Prefetched(Loader()):
            if batch == 3:
                raise ValueError("the consumer's")

    with pytest.raises(ValueError, match="the consumer's"):
        use()
    assert threads() <= before
