"""Where a task's pictures go."""

import json
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.evaluation import save_grid, save_png
from latentfaces.files import written_whole


class PictureFolder:
    """Writes 00000.png, 00001.png, ... and grid.png, each with what remakes it in its PNG text "latentfaces".

    Args:
        folder: where to; it must not hold pictures yet.
        origin: what all pictures have in common: run, weights, task, seed, ...
    """

    def __init__(self, folder: str | Path, origin: dict[str, Any]) -> None:
        self.folder, self.origin = Path(folder), origin
        self.count = 0
        if any(self.folder.glob("*.png")) or (self.folder / "images.npz").exists():
            raise UserError(f"output={self.folder} holds pictures already: name another folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
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
    """

    def __init__(self, path: Path, shape: tuple[int, int, int, int]) -> None:
        self.path, self.shape = path, shape
        self.open = ExitStack()

    def __enter__(self) -> Self:
        archive = self.open.enter_context(zipfile.ZipFile(self.open.enter_context(written_whole(self.path)), "w"))
        self.file = self.open.enter_context(archive.open("arr_0.npy", "w", force_zip64=True))
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self

    def add(self, images: Tensor) -> None:
        """Append images (b, 3, H, W) uint8."""
        self.file.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())

    def __exit__(self, *raised: Any) -> None:
        self.open.__exit__(*raised)
