"""The cache of latents: what lies where, when it is made, and that half a cache is none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentfaces.data.latents import latents_path, open_latents, write_latents
from latentfaces.data.pack import Pack

CPU = torch.device("cpu")


def encode(images: Tensor) -> tuple[Tensor, Tensor]:
    """Give latents that know where left and right are: block means of red and green, and a ramp as deviation."""
    mean = F.avg_pool2d(images, 2)[:, :2]
    return mean, 3 + mean.abs()


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Return a pack of seven noisy pictures."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return Pack(tmp_path, {"num_images": 7})


def block_means(pixels: np.ndarray) -> np.ndarray:
    """Return what `encode` says of pictures, computed with NumPy."""
    floats = pixels[:, :2].astype(np.float64) / 127.5 - 1
    return floats.reshape(len(pixels), 2, 2, 2, 2, 2).mean((3, 5))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_mean_and_deviation_land_in_their_places_for_both_views(pack: Pack, batch_size: int) -> None:
    write_latents(pack, "key", encode, CPU, batch_size)
    moments = open_latents(pack, "key")
    assert moments.shape == (7, 2, 2, 2, 2, 2)
    assert moments.dtype == np.float16
    plain, mirrored = block_means(pack.images), block_means(pack.images[..., ::-1])
    assert not np.allclose(plain, mirrored, atol=0.01)
    expected = np.stack([np.stack([m, 3 + np.abs(m)], axis=1) for m in (plain, mirrored)], axis=1)
    assert np.allclose(moments, expected, atol=2e-3)  # float16 near 4 is exact to 0.002


def counting(calls: list[int]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return an encoder that notes each call."""

    def encode_and_count(images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(images))
        return encode(images)

    return encode_and_count


def test_second_call_does_not_encode_again(pack: Pack) -> None:
    calls: list[int] = []
    write_latents(pack, "key", counting(calls), CPU, batch_size=4)
    assert calls == [4, 4, 3, 3]
    write_latents(pack, "key", counting(calls), CPU, batch_size=4)
    assert calls == [4, 4, 3, 3]


def test_other_weights_make_another_file_and_leave_the_first(pack: Pack) -> None:
    write_latents(pack, "first", encode, CPU)
    before = latents_path(pack, "first").read_bytes()
    write_latents(pack, "second", lambda images: (-encode(images)[0], encode(images)[1]), CPU)
    assert latents_path(pack, "first").read_bytes() == before
    assert np.array_equal(open_latents(pack, "second")[:, :, 0], -open_latents(pack, "first")[:, :, 0])


def test_encoder_that_fails_midway_leaves_no_cache_and_the_next_call_makes_it_whole(pack: Pack) -> None:
    calls = 0

    def fail_at_the_third(images: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory")
        return encode(images)

    with pytest.raises(RuntimeError, match="out of memory"):
        write_latents(pack, "key", fail_at_the_third, CPU, batch_size=2)
    assert not latents_path(pack, "key").exists()
    write_latents(pack, "key", encode, CPU, batch_size=2)
    assert np.allclose(open_latents(pack, "key")[:, 0, 0], block_means(pack.images), atol=2e-3)
    assert sorted(path.name for path in pack.folder.iterdir()) == ["images.npy", "latents-key.npy"]


def test_no_graph_is_kept_while_encoding(pack: Pack) -> None:
    def learned(images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = encode(images * torch.ones(1, requires_grad=True))
        assert not mean.requires_grad
        return mean, std

    write_latents(pack, "key", learned, CPU)
