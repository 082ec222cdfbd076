"""Memory that is lent, and lent again only when nobody looks at it any more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latentfaces.data.memory import BatchMemory


def test_memory_that_is_free_is_lent_again() -> None:
    memory = BatchMemory((3, 4, 4))
    first = memory.lend(5)
    place = first.data_ptr()
    assert (first.shape, first.dtype) == ((5, 3, 4, 4), torch.uint8)
    del first
    assert memory.lend(5).data_ptr() == place
    assert memory.lend(2).data_ptr() == place  # a smaller batch fits as well
    assert memory.lend(6).shape == (6, 3, 4, 4)


VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "slice": lambda batch: batch[1:],
    "numpy": lambda batch: batch.numpy(),
    "slice of numpy": lambda batch: batch.numpy()[1:],
    "reshaped": lambda batch: batch.view(-1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_memory_that_somebody_looks_at_is_left_alone(view: Callable[[Tensor], Any]) -> None:
    memory = BatchMemory((4,))
    batch = memory.lend(3)
    batch.copy_(torch.arange(12).view(3, 4))
    kept = view(batch)
    expected = kept.tolist()
    del batch
    others = [memory.lend(3).fill_(255) for _ in range(4)]
    assert kept.tolist() == expected
    del kept
    assert memory.lend(3).data_ptr() not in [other.data_ptr() for other in others]


def test_batches_that_are_all_kept_are_all_their_own() -> None:
    memory = BatchMemory((4,), kept=2)
    batches = [memory.lend(3).fill_(number) for number in range(6)]
    assert [int(batch.unique()) for batch in batches] == list(range(6))
    del batches
    assert len(memory.free) == 2  # what a person once kept does not stay for good


@pytest.mark.gpu
def test_a_gpu_copies_from_memory_that_is_locked() -> None:
    batch = BatchMemory((3, 4, 4), pinned=True).lend(5)
    assert batch.is_pinned()
    assert batch.pin_memory().data_ptr() == batch.data_ptr()  # the loader does not copy it once more
