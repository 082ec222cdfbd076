"""Where a task's pictures go."""

import itertools
import json
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.evaluation import save_grid, save_png
from latentfaces.files import atomic_write
from latentfaces.ranks import Ranks

MAX_COLUMNS = 16


def new_folder(wanted: Path) -> Path:
    """Create `wanted` or, where it exists, the same with a suffix, so that no two commands share a folder."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"output={folder} cannot be written ({error.strerror})") from error
        return folder
    raise AssertionError


class PictureFolder:
    """Writes 00000.png, 00001.png, ... and grid.png, each with what remakes it in its PNG text "latentfaces".

    Args:
        folder: where to; it must not hold pictures yet.
        origin: what all pictures have in common: run, weights, task, seed, ...
        ranks: the processes that share out the task; only this one unless given.
    """

    def __init__(self, folder: str | Path, origin: dict[str, Any], ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.folder, self.origin = Path(self.ranks.agree(folder)), origin
        self.count = 0
        if any(self.folder.glob("*.png")) or (self.folder / "images.npz").exists():
            raise UserError(f"output={self.folder} already contains images. Choose another folder.")
        self.ranks.wait()  # all have looked
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()  # found out now, and not when the pictures are made
        except OSError as error:
            raise UserError(f"output={self.folder} cannot be written ({error.strerror})") from error

    def add(self, images: Tensor) -> None:
        """Write images (n, 3, H, W) uint8, numbered on from the last."""
        for image in images:
            save_png(image, self.folder / f"{self.count:05d}.png", self.text(index=self.count))
            self.count += 1

    def grid(self, images: Tensor, columns: int) -> Path:
        """Write all images (n, 3, H, W) uint8 as grid.png."""
        path = self.folder / "grid.png"
        if self.ranks.rank == 0:
            save_grid(images, path, columns, self.text())
        return path

    def text(self, **more: Any) -> dict[str, str]:
        """PNG text."""
        return {"latentfaces": json.dumps(self.origin | more)}


class ArrayFile:
    """An .npz with one array `arr_0` (n, H, W, 3) uint8, as evaluations of generators read it, written bit by bit.

    Args:
        path: the file, which appears whole.
        shape: (n, H, W, 3).
        ranks: the processes that add to it, each its share.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int], ranks: Ranks) -> None:
        self.path, self.shape, self.ranks = path, shape, ranks
        self.open = ExitStack()

    def share_of(self, rank: int) -> Path:
        """The bytes of another process than the first, on their way."""
        return self.path.with_name(f"{self.path.name}.{rank}.partial")

    def __enter__(self) -> Self:
        self.file: IO[bytes]
        if self.ranks.rank > 0:
            self.file = self.open.enter_context(self.share_of(self.ranks.rank).open("wb"))
            return self
        archive = self.open.enter_context(zipfile.ZipFile(self.open.enter_context(atomic_write(self.path)), "w"))
        self.file = self.open.enter_context(archive.open("arr_0.npy", "w", force_zip64=True))
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self

    def add(self, images: Tensor) -> None:
        """Append images (b, 3, H, W) uint8."""
        self.file.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())

    def __exit__(self, *raised: Any) -> None:
        whole = raised[0] is None
        if whole and self.ranks.rank == 0:
            self.ranks.wait()
            self.add_shares()
        self.open.__exit__(*raised)
        if whole and self.ranks.rank > 0:
            self.ranks.wait()

    def add_shares(self) -> None:
        """Append what the other processes have made."""
        for rank in range(1, self.ranks.count):
            with self.share_of(rank).open("rb") as share:
                shutil.copyfileobj(share, self.file)
            self.share_of(rank).unlink()


def bands(rows: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Rows of as many images (n, 3, R, R) each, one below the other; broken where they are longer than 16.

    Returns:
        All images in the order of the grid, and its columns.
    """
    columns = min(MAX_COLUMNS, len(rows[0]))
    parts = zip(*(row.split(columns) for row in rows), strict=True)
    return torch.cat([part for band in parts for part in band]), columns


def beside(*columns: Tensor) -> tuple[Tensor, int]:
    """A line for each photo: columns (n, 3, R, R), and blocks (n * k, 3, R, R) with k pictures of each photo in turn.

    Returns:
        All images in the order of the grid, and its columns.
    """
    num_lines = len(columns[0])
    lines = torch.cat([part.unflatten(0, (num_lines, -1)) for part in columns], dim=1)
    return lines.flatten(0, 1), lines.shape[1]
