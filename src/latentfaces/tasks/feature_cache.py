"""Rows of numbers on disk that grow, and survive a kill."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentfaces.files import atomic_write


class GrowingRows:
    """A file of rows of one shape: written as they are made and mapped when they are read, never held in memory.

    A JSON beside the file says what the rows are. What a kill cut off in the middle of a row is written anew; and of
    two processes that make the same rows each writes the same bytes to the same places.

    Args:
        path: the file.
        origin: what decides the rows, as JSON can hold it.

    Raises:
        ValueError: the file is there, and of another origin.
    """

    def __init__(self, path: Path, origin: Any) -> None:
        self.path, self.origin = path, origin
        self.described = path.with_name(path.name + ".json")
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.float32)
        self.count = 0
        if path.exists() and self.described.exists():
            about = json.loads(self.described.read_text())
            if about["origin"] != origin:
                raise ValueError(f"{path} is of other rows")
            self.shape, self.dtype = tuple(about["shape"]), np.dtype(about["dtype"])
            self.count = path.stat().st_size // self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return self.dtype.itemsize * int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.count

    def keep(self, count: int) -> None:
        """Go on after the first `count` rows, if there are more."""
        self.count = min(count, self.count)

    def extend(self, batches: Iterable[Tensor]) -> None:
        """Add batches of rows (n, ...), each as it comes."""
        for rows in batches:
            values = np.ascontiguousarray(rows.numpy())
            if self.count == 0:
                self.describe(values)
            with self.path.open("r+b") as file:
                file.seek(self.count * self.row_bytes)
                file.write(values.tobytes())
            self.count += len(values)

    def describe(self, values: NDArray[Any]) -> None:
        """Begin the file."""
        self.shape, self.dtype = values.shape[1:], values.dtype
        self.path.touch()
        about = {"origin": self.origin, "shape": self.shape, "dtype": str(self.dtype)}
        with atomic_write(self.described) as file:
            file.write(json.dumps(about).encode())

    def read(self) -> Tensor:
        """All rows, mapped from disk; a change to them stays in memory."""
        mapped: NDArray[Any] = np.memmap(self.path, self.dtype, "c", shape=(self.count, *self.shape))
        return torch.from_numpy(mapped)
