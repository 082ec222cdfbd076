"""Bytes and floats, epochs that are permutations, ranks that share, mirrors that mirror."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentfaces.data.ffhq import Draw, FFHQDataset, LatentDataset, TrainBatches, ValBatches, to_float, to_uint8


def flat(batches: list[list[Draw]]) -> list[int]:
    """Return the indices of an epoch in order."""
    return [draw.item for draw in itertools.chain.from_iterable(batches)]


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Return six images that differ in every pixel's neighbour."""
    return np.random.default_rng(0).integers(0, 256, (6, 3, 4, 5), dtype=np.uint8)


def test_every_byte_survives_becoming_a_float() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every_byte)), every_byte)


def test_bytes_span_minus_one_to_one() -> None:
    ends = to_float(torch.tensor([0, 255], dtype=torch.uint8))
    assert ends.tolist() == [-1.0, 1.0]
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
    batch = dataset.__getitems__([Draw(2, True), Draw(0, False), Draw(1, True), Draw(1, False)])
    assert batch.dtype == torch.uint8
    assert np.array_equal(batch.numpy(), np.stack([images[0][..., ::-1], images[5], images[3][..., ::-1], images[3]]))
    assert np.array_equal(images, before)


def test_latent_batch_takes_the_view_that_is_asked_for() -> None:
    moments = np.arange(4 * 2 * 2 * 3, dtype=np.float16).reshape(4, 2, 2, 3, 1, 1)
    dataset = LatentDataset(moments, np.array([3, 1]))
    batch = dataset.__getitems__([Draw(0, True), Draw(1, False)])
    assert np.array_equal(batch.numpy(), np.stack([moments[3, 1], moments[1, 0]]))
    assert np.array_equal(dataset[1].numpy(), moments[1, 0])


def test_epoch_takes_each_item_once() -> None:
    batches = list(TrainBatches(40, 8, seed=0, mirror=True))
    assert [len(batch) for batch in batches] == [8] * 5
    assert sorted(flat(batches)) == list(range(40))
    assert flat(batches) != list(range(40))


def test_remainder_that_fills_no_batch_is_left_out_of_an_epoch() -> None:
    sampler = TrainBatches(43, 8, seed=0, mirror=True)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 5
    assert len(set(flat(batches))) == 40


def test_epochs_and_seeds_differ_and_the_same_seed_is_the_same() -> None:
    sampler = TrainBatches(64, 8, seed=3, mirror=True)
    first, second = list(sampler), list(sampler)
    again = TrainBatches(64, 8, seed=3, mirror=True)
    assert flat(first) != flat(second)
    assert [list(again), list(again)] == [first, second]
    assert flat(list(TrainBatches(64, 8, seed=4, mirror=True))) not in (flat(first), flat(second))


def test_next_seeds_first_epoch_is_not_this_seeds_second() -> None:
    second = list(TrainBatches(64, 8, seed=0, mirror=True, epoch=1))
    assert second != list(TrainBatches(64, 8, seed=1, mirror=True, epoch=0))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_an_epoch_without_overlap(num_ranks: int) -> None:
    ranks = [list(TrainBatches(48, 4, 0, True, rank, num_ranks)) for rank in range(num_ranks)]
    assert {len(batches) for batches in ranks} == {48 // (4 * num_ranks)}
    assert sorted(itertools.chain.from_iterable(flat(batches) for batches in ranks)) == list(range(48))


def test_two_ranks_together_take_what_one_takes_with_twice_the_batch() -> None:
    together = list(TrainBatches(48, 8, 0, True))
    ranks = [list(TrainBatches(48, 4, 0, True, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == together


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_start_in_the_middle_gives_the_tail_of_the_epoch(start: int) -> None:
    whole = list(TrainBatches(40, 8, 0, True, epoch=2))
    assert list(TrainBatches(40, 8, 0, True, epoch=2, start=start)) == whole[start:]


def test_epoch_after_a_resumed_one_is_the_straight_runs() -> None:
    straight, resumed = TrainBatches(40, 8, 0, True), TrainBatches(40, 8, 0, True, epoch=1, start=3)
    epochs = [list(straight) for _ in range(3)]
    assert [list(resumed), list(resumed)] == [epochs[1][3:], epochs[2]]


def test_half_are_mirrored_and_not_the_same_half_each_epoch() -> None:
    sampler = TrainBatches(4000, 10, 0, True)
    epochs = [{draw.item for batch in sampler for draw in batch if draw.mirrored} for _ in range(2)]
    four_deviations = 4 * (4000 * 0.25) ** 0.5
    assert [len(epoch) for epoch in epochs] == pytest.approx([2000, 2000], abs=four_deviations)
    assert len(epochs[0] & epochs[1]) == pytest.approx(1000, abs=4 * (4000 * 3 / 16) ** 0.5)


def test_none_are_mirrored_when_mirroring_is_off_and_the_order_stays() -> None:
    off, on = list(TrainBatches(40, 8, 0, mirror=False)), list(TrainBatches(40, 8, 0, mirror=True))
    assert not any(draw.mirrored for batch in off for draw in batch)
    assert flat(off) == flat(on)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_validation_takes_everything_once_over_the_ranks_and_mirrors_nothing(num_ranks: int) -> None:
    ranks = [ValBatches(23, 4, rank, num_ranks) for rank in range(num_ranks)]
    draws = [draw for rank in ranks for batch in rank for draw in batch]
    assert sorted(draw.item for draw in draws) == list(range(23))
    assert not any(draw.mirrored for draw in draws)
    assert [len(rank) for rank in ranks] == [len(list(rank)) for rank in ranks]


def test_validation_is_in_order_with_a_smaller_last_batch() -> None:
    assert [flat([batch]) for batch in ValBatches(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
