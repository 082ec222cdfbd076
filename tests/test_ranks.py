"""Collective maximum over ranks, without waiting for a GPU."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from latentfaces import ranks
from latentfaces.ranks import DelayedAllReduce, all_reduce_max

CPU = torch.device("cpu")


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Values of another rank, one per call."""
    told: list[float] = []

    def all_reduce(tensor: torch.Tensor, operation: Any) -> None:
        assert operation == dist.ReduceOp.MAX
        tensor.clamp_(min=told.pop(0))

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    yield told
    assert not told  # all values were read


def test_one_rank_agrees_with_itself() -> None:
    assert all_reduce_max(3.5, CPU)() == 3.5
    for device in (CPU, torch.device("cuda")):  # which is not used
        told = DelayedAllReduce()
        assert [told.all_reduce_max(value, device) for value in (3.5, 4.5)] == [3.5, 4.5]


def test_the_greatest_is_told_to_all(others: list[float]) -> None:
    others += [2.0, 7.0]
    assert [all_reduce_max(value, CPU)() for value in (5.0, 5.0)] == [5.0, 7.0]


def test_on_a_cpu_it_is_told_at_once(others: list[float]) -> None:
    others += [0.0, 2.0, 0.0]
    told = DelayedAllReduce()
    assert [told.all_reduce_max(value, CPU) for value in (0.0, 0.0, 3.0)] == [0.0, 2.0, 3.0]


def test_on_a_device_it_is_told_a_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[float] = []
    monkeypatch.setattr(ranks, "num_ranks", lambda: 2)
    monkeypatch.setattr(ranks, "all_reduce_max", lambda value, device: lambda: read.append(value) or value)
    told, gpu = DelayedAllReduce(), SimpleNamespace(type="cuda")
    assert [told.all_reduce_max(value, gpu) for value in (1.0, 2.0, 3.0, 4.0)] == [1.0, 1.0, 2.0, 3.0]  # type: ignore[arg-type]
    assert read == [1.0, 1.0, 2.0, 3.0]  # the fourth is not waited for
