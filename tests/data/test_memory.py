"""Memory that serves again is never taken from who still has it."""

import pickle

import pytest
import torch

from latentfaces.data.memory import KEPT, BatchMemory

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="pinned memory is torch's own to give out")


def test_memory_that_nobody_has_is_given_again() -> None:
    memory = BatchMemory()
    tensor = memory.tensor((2, 3))
    place = tensor.data_ptr()
    assert (tensor.shape, tensor.dtype) == ((2, 3), torch.uint8)
    del tensor
    assert memory.tensor((3, 2)).data_ptr() == place


@pytest.mark.parametrize(
    "kept", [lambda t: t, lambda t: t[1], lambda t: t.view(-1).split(2), lambda t: t.numpy()[1:], lambda t: t.numpy().T]
)
def test_memory_that_somebody_has_any_part_of_is_left_alone(kept: object) -> None:
    memory = BatchMemory()
    tensor = memory.tensor((2, 3))
    place = tensor.data_ptr()
    part = kept(tensor)  # type: ignore[operator]
    del tensor
    again = [memory.tensor((2, 3)) for _ in range(2 * KEPT)]
    assert place not in [each.data_ptr() for each in again]
    assert len({each.data_ptr() for each in again}) == 2 * KEPT
    del part


def test_no_more_than_three_blocks_are_kept() -> None:
    memory = BatchMemory()
    held = [memory.tensor((2, 3)) for _ in range(10)]
    assert len(memory.blocks) == KEPT == 3
    assert len(held) == 10


def test_a_copy_for_another_process_has_its_own_memory() -> None:
    memory = BatchMemory()
    tensor = memory.tensor((2, 3))
    copy = pickle.loads(pickle.dumps(memory))
    assert copy.tensor((2, 3)).data_ptr() != tensor.data_ptr()
