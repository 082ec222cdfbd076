"""Photos, and a folder for their pack."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WritePhoto = Callable[..., None]


@pytest.fixture
def write_photo() -> WritePhoto:
    """Return `write_photo(path, number, side=16)`, which writes a gradient that depends on `number`."""

    def write(path: Path, number: int, side: int = 16) -> None:
        rows, columns = np.mgrid[0:side, 0:side]
        planes = [rows * 9 + number, columns * 9 + 3 * number, rows * 4 + columns * 4 + 7 * number]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(path)

    return write


@pytest.fixture
def photos(tmp_path: Path, write_photo: WritePhoto) -> Path:
    """Return a folder of twelve photos."""
    for number in range(12):
        write_photo(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder for the pack, two levels below an existing one."""
    return tmp_path / "data" / "photos-8"
