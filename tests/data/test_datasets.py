"""Conversion to float, order of epochs, ranks and mirroring."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentfaces.data.datasets import Draws, FFHQDataset, LatentDataset, TrainBatches, ValBatches
from latentfaces.data.images import to_float, to_uint8

Epoch = list[list[tuple[int, bool]]]


def epoch_of(batches: Iterable[Draws]) -> Epoch:
    """Return the batches as lists of (item, mirrored), which can be compared."""
    return [list(zip(draws.items.tolist(), draws.mirrored.tolist(), strict=True)) for draws in batches]


def flat(batches: Epoch) -> list[int]:
    """Return the items of an epoch in order."""
    return [item for item, _ in itertools.chain.from_iterable(batches)]


def draws(*pairs: tuple[int, bool]) -> Draws:
    """Return a batch of (item, mirrored)."""
    return Draws(*(np.array(column) for column in zip(*pairs, strict=True)))


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Return six images that differ in every pixel's neighbour."""
    return np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)


def test_every_byte_survives_becoming_a_float() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every_byte)), every_byte)


def test_bytes_span_minus_one_to_one() -> None:
    ends = to_float(torch.tensor([0, 255], dtype=torch.uint8))
    assert ends.tolist() == pytest.approx([-1.0, 1.0], abs=2e-7)
    assert ends.abs().max() <= 1
    assert ends.dtype == torch.float32


def test_floats_are_rounded_and_clipped() -> None:
    step = 1 / 127.5
    values = torch.tensor([-1.7, -1 + 0.4 * step, -1 + 0.6 * step, 1.0, 9.0])
    assert to_uint8(values).tolist() == [0, 0, 1, 255, 255]


def test_item_is_the_indexed_picture_as_floats(images: NDArray[np.uint8]) -> None:
    dataset = FFHQDataset(images, np.array([4, 1]))
    assert len(dataset) == 2
    assert torch.equal(dataset[1], to_float(torch.from_numpy(images[1].copy())))


def test_batch_mirrors_exactly_the_flagged_pictures(images: NDArray[np.uint8]) -> None:
    before = images.copy()
    dataset = FFHQDataset(images, np.array([5, 3, 0]))
    batch = dataset.__getitems__(draws((2, True), (0, False), (1, True), (1, False)))
    assert batch.images.dtype == torch.uint8
    expected = torch.from_numpy(np.stack([images[0][..., ::-1], images[5], images[3][..., ::-1], images[3]]))
    assert torch.allclose(to_float(batch.images, batch.mirrored), expected.float() / 127.5 - 1, rtol=0, atol=2e-7)
    assert np.array_equal(images, before)
    assert batch.rows.tolist() == [0, 5, 3, 3]


def test_floats_go_where_they_are_told_to(images: NDArray[np.uint8]) -> None:
    batch, out = torch.from_numpy(images), torch.full(images.shape, torch.nan)
    flags = torch.tensor([True, False] * 3)
    floats = to_float(batch, flags, out)
    assert floats.data_ptr() == out.data_ptr()
    assert torch.equal(floats, to_float(batch, flags))


@pytest.mark.gpu
def test_a_gpu_makes_the_same_floats(images: NDArray[np.uint8]) -> None:
    batch, flags = torch.from_numpy(images), torch.tensor([True, False] * 3)
    assert torch.equal(to_float(batch.cuda(), flags.cuda()).cpu(), to_float(batch, flags))


def test_latent_batch_takes_the_view_that_is_asked_for() -> None:
    moments = np.arange(4 * 2 * 2 * 3, dtype=np.float16).reshape(4, 2, 2, 3, 1, 1)
    dataset = LatentDataset(moments, np.array([3, 1]))
    batch = dataset.__getitems__(draws((0, True), (1, False)))
    assert np.array_equal(batch.moments.numpy(), np.stack([moments[3, 1], moments[1, 0]]))
    assert batch.rows.tolist() == [3, 1]
    assert batch.labels is None
    labels = np.arange(len(moments), dtype=np.float32)[:, None]
    labelled = LatentDataset(moments, np.array([3, 1]), labels).__getitems__(draws((0, True), (1, False)))
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [[3.0], [1.0]]


def test_epoch_takes_each_item_once() -> None:
    batches = epoch_of(TrainBatches(40, 8, seed=0, mirror=True))
    assert [len(batch) for batch in batches] == [8] * 5
    assert sorted(flat(batches)) == list(range(40))
    assert flat(batches) != list(range(40))


def test_remainder_that_fills_no_batch_is_left_out_of_an_epoch() -> None:
    sampler = TrainBatches(43, 8, seed=0, mirror=True)
    batches = epoch_of(sampler)
    assert len(sampler) == len(batches) == 5
    assert len(set(flat(batches))) == 40


def test_epochs_and_seeds_differ_and_the_same_seed_is_the_same() -> None:
    sampler = TrainBatches(64, 8, seed=3, mirror=True)
    first, second = epoch_of(sampler), epoch_of(sampler)
    again = TrainBatches(64, 8, seed=3, mirror=True)
    assert flat(first) != flat(second)
    assert [epoch_of(again), epoch_of(again)] == [first, second]
    assert flat(epoch_of(TrainBatches(64, 8, seed=4, mirror=True))) not in (flat(first), flat(second))


def test_next_seeds_first_epoch_is_not_this_seeds_second() -> None:
    second = epoch_of(TrainBatches(64, 8, seed=0, mirror=True, epoch=1))
    assert second != epoch_of(TrainBatches(64, 8, seed=1, mirror=True, epoch=0))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_an_epoch_without_overlap(num_ranks: int) -> None:
    ranks = [epoch_of(TrainBatches(48, 4, 0, True, rank, num_ranks)) for rank in range(num_ranks)]
    assert {len(batches) for batches in ranks} == {48 // (4 * num_ranks)}
    assert sorted(itertools.chain.from_iterable(flat(batches) for batches in ranks)) == list(range(48))


def test_two_ranks_together_take_what_one_takes_with_twice_the_batch() -> None:
    together = epoch_of(TrainBatches(48, 8, 0, True))
    ranks = [epoch_of(TrainBatches(48, 4, 0, True, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == together


@pytest.mark.parametrize("start", [0, 1, 4])
def test_start_in_the_middle_gives_the_tail_of_the_epoch(start: int) -> None:
    full = epoch_of(TrainBatches(40, 8, 0, True, epoch=2))
    assert epoch_of(TrainBatches(40, 8, 0, True, epoch=2, taken=8 * start)) == full[start:]


@pytest.mark.parametrize("taken", [36, 40])
def test_epoch_without_a_step_left_is_followed_by_the_next(taken: int) -> None:
    assert epoch_of(TrainBatches(40, 8, 0, True, epoch=2, taken=taken)) == epoch_of(
        TrainBatches(40, 8, 0, True, epoch=3)
    )


def test_epoch_after_a_resumed_one_is_the_straight_runs() -> None:
    straight, resumed = TrainBatches(40, 8, 0, True), TrainBatches(40, 8, 0, True, epoch=1, taken=24)
    epochs = [epoch_of(straight) for _ in range(3)]
    assert [epoch_of(resumed), epoch_of(resumed)] == [epochs[1][3:], epochs[2]]


def test_number_of_batches_is_a_multiple_of_the_accumulation() -> None:
    sampler = TrainBatches(43, 4, 0, True, accumulate=3)
    assert len(sampler) == len(epoch_of(sampler)) == 9
    assert len(epoch_of(TrainBatches(43, 4, 0, True, accumulate=3, taken=12))) == 6


@pytest.mark.parametrize(
    "layouts", [[(1, 3, 8), (2, 99, 8)], [(2, 2, 8), (1, 1, 8), (1, 99, 8)], [(1, 3, 4), (3, 2, 4), (2, 99, 5)]]
)
def test_epoch_over_several_numbers_of_ranks_takes_each_item_once(layouts: list[tuple[int, int, int]]) -> None:
    """Each layout is a number of ranks, the batches until the run is stopped, and the batch size."""
    taken, items = 0, list[int]()
    for num_ranks, num_batches, batch_size in layouts:
        for rank in range(num_ranks):
            sampler = TrainBatches(120, batch_size, 0, True, rank, num_ranks, taken=taken)
            batches = epoch_of(sampler)
            assert sampler.first + len(batches) == len(sampler)
            items += flat(batches[:num_batches])
        taken = sampler.taken(sampler.first + len(batches[:num_batches]))
    assert len(items) == len(set(items)) == taken
    assert 120 - taken < num_ranks * batch_size


def test_half_are_mirrored_and_not_the_same_half_each_epoch() -> None:
    sampler = TrainBatches(4000, 10, 0, True)
    epochs = [{item for batch in epoch_of(sampler) for item, mirrored in batch if mirrored} for _ in range(2)]
    four_deviations = 4 * (4000 * 0.25) ** 0.5
    assert [len(epoch) for epoch in epochs] == pytest.approx([2000, 2000], abs=four_deviations)
    assert len(epochs[0] & epochs[1]) == pytest.approx(1000, abs=4 * (4000 * 3 / 16) ** 0.5)


def test_none_are_mirrored_when_mirroring_is_off_and_the_order_stays() -> None:
    off, on = epoch_of(TrainBatches(40, 8, 0, mirror=False)), epoch_of(TrainBatches(40, 8, 0, mirror=True))
    assert not any(mirrored for batch in off for _, mirrored in batch)
    assert flat(off) == flat(on)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_validation_takes_everything_once_over_the_ranks_and_mirrors_nothing(num_ranks: int) -> None:
    ranks = [ValBatches(23, 4, rank, num_ranks) for rank in range(num_ranks)]
    taken = [draw for rank in ranks for batch in epoch_of(rank) for draw in batch]
    assert sorted(item for item, _ in taken) == list(range(23))
    assert not any(mirrored for _, mirrored in taken)
    assert [len(rank) for rank in ranks] == [len(list(rank)) for rank in ranks]


@pytest.mark.parametrize("num_items", [4, 17, 33, 48])
def test_no_rank_waits_in_a_validation_for_one_that_has_fewer_batches(num_items: int) -> None:
    assert len({len(ValBatches(num_items, 8, rank, 4)) for rank in range(4)}) == 1


def test_validation_is_in_order_with_a_smaller_last_batch() -> None:
    assert [flat([batch]) for batch in epoch_of(ValBatches(10, 4))] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
