"""Output folders of the tasks."""

import contextlib
import fcntl
import itertools
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.evaluation import save_grid, save_png
from latentfaces.export.credentials import Credentials
from latentfaces.files import atomic_write, drop_if_empty
from latentfaces.marks import EDITED, GENERATED, Source, mark_npz, png_info
from latentfaces.ranks import Ranks

MAX_COLUMNS = 16
DPI = 120
OWN_LABELS = "labels_of_image"
"""Key of an image's own labels in its metadata."""


def new_folder(wanted: Path) -> Path:
    """Create `wanted` or, where it exists, the same with a suffix, so that no two commands share a folder."""
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}_{number}")
        except OSError as error:
            raise UserError(f"output={folder} cannot be written ({error.strerror})") from error


class PictureFolder:
    """Folder for 00000.png, 00001.png, ... and grid.png, each with the metadata that reproduces it.

    Its context leaves no empty folder, and the lock that the constructor takes ends.

    Args:
        folder: the folder, without images. No other command may be writing to it.
        origin: metadata of all images: run, weights, task, seed, ...
        ranks: ranks that share the task; this one alone by default.
        credentials: signs the files, if given.
    """

    def __init__(
        self,
        folder: str | Path,
        origin: dict[str, Any],
        ranks: Ranks | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self.ranks, self.credentials = ranks or Ranks(), credentials
        self.folder = Path(self.ranks.agree(folder))
        self.origin: dict[str, Any] = json.loads(json.dumps(origin))  # a task that resumes compares it with a file
        self.count = 0
        self.source: Source = GENERATED
        """Source type of the next images. A task that changes photos sets `EDITED`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.glob("*.png")) or (self.folder / "images.npz").exists():
                raise UserError(f"output={self.folder} already contains images. Choose another folder.")
            tempfile.TemporaryFile(dir=self.folder).close()  # fail now, not after sampling
            self.lock = os.open(self.folder, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"output={self.folder} cannot be written ({error.strerror})") from error
        if self.ranks.rank == 0:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self.lock)
                raise UserError(f"output={self.folder} is in use by another command. Choose another folder.") from None
            except OSError:
                pass  # a file system without locks
        self.ranks.wait()  # all have checked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.lock)
        drop_if_empty(self.folder)

    def add(self, images: Tensor, labels: Sequence[Mapping[str, float | str]] = ()) -> None:
        """Write images (n, 3, H, W) uint8, numbered from the last one on, with the known labels of each, if any."""
        for image, own in itertools.zip_longest(images, labels):
            more: dict[str, Any] = {OWN_LABELS: own} if own else {}
            self.write(image, f"{self.count:05d}.png", index=self.count, **more)
            self.count += 1

    def write(self, image: Tensor, name: str, compress_level: int = 6, **more: Any) -> Path:
        """Write an image (3, H, W) uint8 with the metadata that reproduce it, and `more`."""
        path = self.folder / name
        save_png(image, path, self.recipe(**more), self.source, compress_level)
        self.sign(path)
        return path

    def grid(self, images: Tensor, columns: int) -> Path:
        """Write all images (n, 3, H, W) uint8 as grid.png."""
        path = self.folder / "grid.png"
        if self.ranks.rank == 0:
            save_grid(images, path, columns, self.recipe(), self.source)
            self.sign(path)
        return path

    def sign(self, path: Path, source: Source | None = None) -> None:
        """Sign a new file of the folder, if the user has given a certificate."""
        if self.credentials is not None:
            self.credentials.sign(path, source or self.source)

    def figure(self, figure: Figure, name: str) -> None:
        """Write a figure that shows photos."""
        path = self.folder / name
        figure.savefig(path, dpi=DPI, pil_kwargs={"pnginfo": png_info(EDITED)})
        self.sign(path, EDITED)

    def recipe(self, **more: Any) -> str:
        """Return the metadata that reproduce an image."""
        return json.dumps(self.origin | more)


@contextlib.contextmanager
def npz_writer(path: Path, shape: tuple[int, int, int, int], recipe: str = "") -> Iterator[Callable[[Tensor], None]]:
    """Write an .npz with images as `arr_0` of `shape` (n, H, W, 3) uint8, which evaluation codes read, and its marks.

    Yields:
        A function that appends images (b, 3, H, W) uint8.
    """
    with atomic_write(path) as target, zipfile.ZipFile(target, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})

            def append(images: Tensor) -> None:
                file.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())

            yield append
        mark_npz(archive, GENERATED, recipe)


def bands(rows: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Arrange rows of images (n, 3, R, R) below one another, broken after 16 columns.

    Returns:
        All images in the order of the grid, and the number of columns.
    """
    columns = min(MAX_COLUMNS, len(rows[0]))
    parts = zip(*(row.split(columns) for row in rows), strict=True)
    return torch.cat([part for band in parts for part in band]), columns


def beside(*columns: Tensor) -> tuple[Tensor, int]:
    """Arrange a row per photo: columns (n, 3, R, R), and blocks (n * k, 3, R, R) with k images of each photo in turn.

    Returns:
        All images in the order of the grid, and the number of columns.
    """
    rows = torch.cat([part.unflatten(0, (len(columns[0]), -1)) for part in columns], dim=1)
    return rows.flatten(0, 1), rows.shape[1]
