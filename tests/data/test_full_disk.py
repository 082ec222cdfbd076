"""A disk that is full at any write of a packing or a latent cache: with room again, both are resumed without damage."""

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentfaces.data.images import FilterName, Picture
from latentfaces.data.latents import LatentCache
from latentfaces.data.packing import find_or_write_pack
from latentfaces.data.sources import BadImageError, DrawnFaces

PAGE = 4096
PAGES = 32


class OneBad(DrawnFaces):
    """Forty faces, of which one cannot be read."""

    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        if index == 11:
            raise BadImageError("drawn-000011 cannot be read")
        return super().read(index, resolution, resize_filter)


def pack_without_one(folder: Path) -> Path:
    return find_or_write_pack(OneBad(40), folder / "faces-16", 16, "skip").folder / "images.npy"


def latents_in(folder: Path) -> Path:
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        mean = F.avg_pool2d(images, 2)
        return mean, 1 + mean.abs()

    cache = LatentCache(find_or_write_pack(DrawnFaces(40), folder / "faces-16", 16), "key", encode, batch_size=3)
    cache.fill(torch.device("cpu"))
    cache.finish()
    return cache.path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 128 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={PAGES * PAGE}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("write", [pack_without_one, latents_in])
def test_file_that_a_full_disk_interrupted_is_completed_without_damage(
    small_disk: Path, tmp_path: Path, write: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("packing", "arrays"):  # as if another process filled the disk meanwhile
        monkeypatch.setattr(f"latentfaces.data.{module}.require_space", lambda *_: None)
    expected = write(tmp_path / "straight").read_bytes()
    outcomes: list[bool] = []
    for pages in range(2, PAGES, 3):
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes((PAGES - pages) * PAGE))
        folder = small_disk / "data"
        try:
            path = write(folder)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
            outcomes.append(False)
        else:
            assert path.read_bytes() == expected
            outcomes.append(True)
        ballast.unlink()
        assert write(folder).read_bytes() == expected
        subprocess.run(["rm", "-r", str(folder)], check=True)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}
