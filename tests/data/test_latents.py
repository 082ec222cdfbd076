"""Latent cache: layout, reuse, resumes, ranks and damaged files."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentfaces.data.latents import Encode, LatentCache, images_at_once
from latentfaces.data.pack import Pack
from latentfaces.errors import UserError

CPU = torch.device("cpu")


def encode(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return latents that differ for mirror images: block means of red and green, and a std that depends on them."""
    mean = F.avg_pool2d(images, 2)[:, :2]
    return mean, 3 + mean.abs()


def write_latents(pack: Pack, key: str, encode: Encode, device: torch.device, batch_size: int = 64) -> Path:
    """Fill the cache in this process, as one rank does; return its path."""
    cache = LatentCache(pack, key, encode, batch_size)
    cache.fill(device)
    cache.finish()
    return cache.path


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Return a pack of seven noise images."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return Pack(tmp_path, {"num_images": 7, "sha256": "0123456789abcdef"})


def block_means(pixels: np.ndarray) -> np.ndarray:
    """Return the mean of `encode`, computed with NumPy."""
    floats = pixels[:, :2].astype(np.float64) / 127.5 - 1
    return floats.reshape(len(pixels), 2, 2, 2, 2, 2).mean((3, 5))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_mean_and_deviation_land_in_their_places_for_both_views(pack: Pack, batch_size: int) -> None:
    assert write_latents(pack, "key", encode, CPU, batch_size) == LatentCache(pack, "key", encode).path
    moments = LatentCache(pack, "key", encode).open()
    assert moments.shape == (7, 2, 2, 2, 2, 2)
    assert moments.dtype == np.float16
    plain, mirrored = block_means(pack.images[:]), block_means(pack.images[:][..., ::-1])
    assert not np.allclose(plain, mirrored, atol=0.01)
    expected = np.stack([np.stack([m, 3 + np.abs(m)], axis=1) for m in (plain, mirrored)], axis=1)
    assert np.allclose(moments, expected, atol=2e-3)  # float16 near 4 is exact to 0.002


def counting(calls: list[int]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return an encoder that records the batch size of each call."""

    def encode_and_count(images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(images))
        return encode(images)

    return encode_and_count


def failing_at(number: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return an encoder whose call `number` fails."""
    calls = itertools.count(1)

    def encode_or_fail(images: Tensor) -> tuple[Tensor, Tensor]:
        if next(calls) == number:
            raise RuntimeError("out of memory")
        return encode(images)

    return encode_or_fail


def test_second_call_does_not_encode_again(pack: Pack) -> None:
    calls: list[int] = []
    write_latents(pack, "key", counting(calls), CPU, batch_size=4)
    assert calls == [4, 4, 3, 3]
    write_latents(pack, "key", counting(calls), CPU, batch_size=4)
    assert calls == [4, 4, 3, 3]


def test_without_mirroring_only_the_images_themselves_are_encoded(pack: Pack) -> None:
    calls: list[int] = []
    cache = LatentCache(pack, "key", counting(calls), batch_size=4, mirrored=False)
    cache.fill(CPU)
    cache.finish()
    assert calls == [4, 3]
    moments = cache.open()
    write_latents(pack, "key", encode, CPU)
    both = LatentCache(pack, "key", encode).open()
    assert np.array_equal(moments, both[:, :1])
    assert np.array_equal(LatentCache(pack, "key", encode, mirrored=False).open(), both)


def test_other_weights_make_another_file_and_leave_the_first(pack: Pack) -> None:
    first = write_latents(pack, "first", encode, CPU)
    before = first.read_bytes()
    second = write_latents(pack, "second", lambda images: (-encode(images)[0], encode(images)[1]), CPU)
    assert first.read_bytes() == before
    assert np.array_equal(np.load(second)[:, :, 0], -np.load(first)[:, :, 0])


def test_other_pixels_make_another_file_and_leave_the_first(pack: Pack) -> None:
    first = write_latents(pack, "key", encode, CPU)
    before = first.read_bytes()
    np.save(pack.folder / "images.npy", 255 - pack.images[:])
    other = Pack(pack.folder, {"num_images": 7, "sha256": "fedcba9876543210"})
    second = write_latents(other, "key", encode, CPU)
    assert first.read_bytes() == before
    assert np.allclose(np.load(second)[:, 0, 0], block_means(other.images[:]), atol=2e-3)


def test_encoder_that_fails_midway_leaves_no_cache_and_the_next_call_makes_it_whole(pack: Pack) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        write_latents(pack, "key", failing_at(3), CPU, batch_size=2)
    cache = LatentCache(pack, "key", encode)
    assert not cache.path.exists()
    write_latents(pack, "key", encode, CPU, batch_size=2)
    assert np.allclose(cache.open()[:, 0, 0], block_means(pack.images[:]), atol=2e-3)
    assert sorted(path.name for path in pack.folder.glob("[!.]*")) == ["images.npy", "latents-key-01234567.npy"]


@pytest.mark.parametrize("failing_call", [3, 4])  # the second batch as it is, and mirrored
def test_encoding_that_was_cut_goes_on_with_what_is_missing(pack: Pack, failing_call: int) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        write_latents(pack, "key", failing_at(failing_call), CPU, batch_size=2)
    calls: list[int] = []
    resumed = write_latents(pack, "key", counting(calls), CPU, batch_size=2)
    assert calls == [2, 2, 2, 2, 1, 1]
    assert resumed.read_bytes() == write_latents(pack, "straight", encode, CPU, batch_size=2).read_bytes()


def test_another_batch_size_fills_batches_that_are_partly_encoded(pack: Pack) -> None:
    with pytest.raises(RuntimeError):
        write_latents(pack, "key", failing_at(3), CPU, batch_size=2)
    resumed = write_latents(pack, "key", encode, CPU, batch_size=3)
    assert resumed.read_bytes() == write_latents(pack, "straight", encode, CPU).read_bytes()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_shares_of_the_ranks_together_are_what_one_rank_makes(pack: Pack, num_ranks: int, batch_size: int) -> None:
    sizes: list[int] = []
    for rank in reversed(range(num_ranks)):
        shared = LatentCache(pack, "shared", counting(sizes), batch_size)
        shared.fill(CPU, rank, num_ranks)
        assert not shared.path.exists()
    shared.finish()
    assert sum(sizes) == 2 * 7
    assert shared.path.read_bytes() == write_latents(pack, "alone", encode, CPU, batch_size).read_bytes()


def test_a_rank_writes_no_byte_of_anothers_rows(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory map would write pages, and overwrite rows of other machines on a shared file system."""
    written: dict[int, list[tuple[int, int]]] = {}
    pwrite = os.pwrite

    def recorded(file: int, rows: memoryview, offset: int) -> int:
        if rows.nbytes > 2:  # the state has one byte per image
            written[rank].append((offset, offset + rows.nbytes))
        return pwrite(file, rows, offset)

    monkeypatch.setattr("latentfaces.data.arrays.os.pwrite", recorded)
    caches = [LatentCache(pack, "key", encode, batch_size=2) for _ in range(2)]
    for rank, cache in enumerate(caches):
        written[rank] = []
        cache.fill(CPU, rank, 2)
    row, end = 2 * 2 * 8 * 2, caches[0].array.partial.stat().st_size
    ends = [*range(end - 7 * row, end, 2 * row), end]  # of batches of 2, 2, 2 and 1 images
    batches = list(itertools.pairwise(ends))
    assert written == {0: batches[::2], 1: batches[1::2]}


def test_filling_twice_loses_nothing(pack: Pack) -> None:
    calls: list[int] = []
    cache = LatentCache(pack, "key", counting(calls), batch_size=2)
    cache.fill(CPU, rank=0, num_ranks=2)
    cache.fill(CPU)
    cache.finish()
    before = cache.path.read_bytes()
    cache.fill(CPU)
    cache.finish()
    assert sum(calls) == 2 * 7
    assert cache.path.read_bytes() == before == write_latents(pack, "straight", encode, CPU, batch_size=2).read_bytes()


@pytest.mark.parametrize("shape", [(6, 2, 2, 2, 2, 2), (7, 2, 2, 2, 2), (7, 2, 1, 2, 2, 2), (7,)])
def test_file_of_another_shape_is_refused_by_name(pack: Pack, shape: tuple[int, ...]) -> None:
    cache = LatentCache(pack, "key", encode)
    np.save(cache.path, np.zeros(shape, np.float16))
    with pytest.raises(UserError, match=rf"{cache.path.name} has shape .*Delete it"):
        cache.open()


@pytest.mark.parametrize(("resolution", "expected"), [(64, 64), (256, 64), (512, 16), (1024, 4), (4096, 1)])
def test_large_pictures_are_encoded_few_at_once(resolution: int, expected: int) -> None:
    assert images_at_once(resolution) == expected


def test_a_whole_cache_is_used_where_nothing_may_be_written(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    write_latents(pack, "w", encode, CPU)
    monkeypatch.setattr("latentfaces.data.latents.file_lock", lambda _: pytest.fail("a lock is a file, too"))
    write_latents(pack, "w", encode, CPU)


def test_no_graph_is_kept_while_encoding(pack: Pack) -> None:
    def learned(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = encode(images * torch.ones(1, requires_grad=True))
        assert not mean.requires_grad
        return mean, std

    write_latents(pack, "key", learned, CPU)


def test_cache_that_the_disk_cannot_hold_is_refused_before_it_is_created(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 7 * 2 * 2 * 2 * 2 * 2 * 2  # pictures, views, moments, channels, height, width, bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(UserError, match=r"latents-key-01234567\.npy needs .* are free"):
        write_latents(pack, "key", encode, CPU)
    assert list(pack.folder.glob("latents-*")) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
    write_latents(pack, "key", encode, CPU)
