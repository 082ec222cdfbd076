"""Rows of an array on disk, without mapping it."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentfaces.errors import UserError


class RowFile:
    """An .npy file whose rows are read by index, as from an array.

    A memory map is as fast, but every page it has touched counts as the process's memory, until a set of 70,000
    pictures seems to fill the machine; here a process holds the rows it asked for and nothing else.

    Args:
        path: the .npy file, of at least one dimension, in C order.
        writable: rows can be set as well.
        axes: so many of the first axes number the rows, together.
        remedy: what to do where the file was cut.
    """

    def __init__(self, path: Path, writable: bool = False, axes: int = 1, remedy: str = "pack again") -> None:
        header = np.load(path, mmap_mode="r")
        self.path, self.dtype, self.axes, self.remedy = path, header.dtype, axes, remedy
        self.shape = (math.prod(header.shape[:axes]), *header.shape[axes:])
        self.offset = header.offset
        self.row_bytes = header.itemsize * math.prod(header.shape[axes:])
        self.numbers = np.arange(self.shape[0])  # once, not in each batch
        self.file = path.open("r+b" if writable else "rb", buffering=0)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | NDArray[np.int64]) -> NDArray[Any]:
        """One row by number, or several by slice or array of numbers.

        Raises:
            UserError: naming the file, where it has become shorter.
        """
        numbers = np.atleast_1d(self.numbers[index])
        rows = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        self.take(numbers, rows)
        return rows[0] if isinstance(index, int | np.integer) else rows

    def take(self, numbers: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read the rows of these numbers, none of them negative, into `out`.

        Raises:
            UserError: naming the file, where it has become shorter.
        """
        for row, number in zip(out, numbers.tolist(), strict=True):
            if os.preadv(self.file.fileno(), [row.data], self.offset + number * self.row_bytes) != self.row_bytes:
                raise UserError(f"{self.path} ends before row {number}: it was cut since it was written; {self.remedy}")

    def __setitem__(self, number: int, row: NDArray[Any]) -> None:
        """Write one row; an array mapped from the file shows it too."""
        assert row.shape == self.shape[1:]
        bytes_of_row = np.ascontiguousarray(row, self.dtype).data
        os.pwrite(self.file.fileno(), bytes_of_row, self.offset + number * self.row_bytes)

    def __reduce__(self) -> tuple[type["RowFile"], tuple[Path, bool, int, str]]:
        """Worker processes open the file anew."""
        return RowFile, (self.path, False, self.axes, self.remedy)


def open_rows(
    path: Path, writable: bool = False, axes: int = 1, remedy: str = "pack again"
) -> RowFile | NDArray[Any]:
    """The rows of a file; its memory map where the system cannot read and write at a place; see `RowFile`."""
    if hasattr(os, "preadv"):
        return RowFile(path, writable, axes, remedy)
    array: NDArray[Any] = np.load(path, mmap_mode="r+" if writable else "r")
    return array.reshape(-1, *array.shape[axes:])
