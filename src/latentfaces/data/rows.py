"""Rows of an array on disk, without mapping it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentfaces.errors import UserError

LARGE = 2**22
"""Bytes from which two threads read faster than one: reading lets go of the interpreter."""


class RowFile:
    """An .npy file whose rows are read by index, as from an array.

    A memory map is as fast, but every page it has touched counts as the process's memory, until a set of 70,000
    pictures seems to fill the machine; here a process holds the rows it asked for and nothing else.

    Args:
        path: the .npy file, of at least one dimension, in C order.
        writable: rows can be set as well.
    """

    def __init__(self, path: Path, writable: bool = False) -> None:
        header = np.load(path, mmap_mode="r")
        self.path, self.shape, self.dtype = path, header.shape, header.dtype
        self.offset = header.offset
        self.row_bytes = header[:1].nbytes
        self.numbers = np.arange(len(header))  # once, not in each batch
        self.file = path.open("r+b" if writable else "rb", buffering=0)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | NDArray[np.int64]) -> NDArray[Any]:
        """One row by number, or several by slice or by numbers in an array of any shape.

        Raises:
            UserError: naming the file, where it has become shorter.
        """
        numbers = np.asarray(self.numbers[index])
        rows = np.empty((numbers.size, *self.shape[1:]), self.dtype)
        self.take(numbers.reshape(-1), rows)
        return rows.reshape(*numbers.shape, *self.shape[1:])

    def take(self, numbers: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read the rows of these numbers, none of them negative, into `out` (len(numbers), ...), in C order.

        Raises:
            UserError: naming the file, where it has become shorter.
        """
        assert out.nbytes == len(numbers) * self.row_bytes
        if out.nbytes < LARGE:
            self.read(numbers, out)
            return
        half = len(numbers) // 2
        with ThreadPoolExecutor(1) as helper:  # begun anew: one that is kept would not live through a fork
            rest = helper.submit(self.read, numbers[half:], out[half:])
            self.read(numbers[:half], out[:half])
            rest.result()

    def read(self, numbers: NDArray[np.int64], out: NDArray[Any]) -> None:
        """As `take`, in this thread."""
        file, size, all_bytes = self.file.fileno(), self.row_bytes, out.reshape(-1).data.cast("B")
        for place, number in enumerate(numbers.tolist()):
            row = all_bytes[place * size : (place + 1) * size]
            if os.preadv(file, [row], self.offset + number * size) != size:
                raise UserError(f"{self.path} ends before row {number}: it was cut since it was written; pack again")

    def __setitem__(self, number: int, row: NDArray[Any] | np.generic) -> None:
        """Write one row; an array mapped from the file shows it too."""
        assert row.shape == self.shape[1:]
        bytes_of_row = np.ascontiguousarray(row, self.dtype).data
        os.pwrite(self.file.fileno(), bytes_of_row, self.offset + number * self.row_bytes)

    def flush(self) -> None:
        """Wait until what was set is on disk, for other machines too."""
        os.fsync(self.file.fileno())

    def __reduce__(self) -> tuple[type["RowFile"], tuple[Path]]:
        """Worker processes open the file anew."""
        return RowFile, (self.path,)


def open_rows(path: Path, writable: bool = False) -> "RowFile | np.memmap[Any, Any]":
    """The rows of a file; its memory map where the system cannot read and write at a place."""
    if hasattr(os, "preadv"):
        return RowFile(path, writable)
    return np.load(path, mmap_mode="r+" if writable else "r")


class MappedRows:
    """A memory map whose file is looked at before each read: of one that was cut the system would kill the process.

    For small rows, which a `RowFile` takes more than twice as long to read.

    Args:
        path: the .npy file.
        axes: so many of the first axes number the rows, together.
    """

    def __init__(self, path: Path, axes: int = 1) -> None:
        mapped = np.load(path, mmap_mode="r")
        self.path, self.axes, self.num_bytes = path, axes, mapped.offset + mapped.nbytes
        self.rows: NDArray[Any] = mapped.reshape(-1, *mapped.shape[axes:])
        self.file = path.open("rb", buffering=0)

    def __getitem__(self, index: int | NDArray[np.int64]) -> NDArray[Any]:
        """One row by number, or several by an array of numbers.

        Raises:
            UserError: naming the file, where it has become shorter.
        """
        if (left := os.fstat(self.file.fileno()).st_size) < self.num_bytes:
            raise UserError(
                f"{self.path} was cut since it was written, to {left:,} of {self.num_bytes:,} bytes: delete it and run "
                "again"
            )
        return self.rows[index]

    def __reduce__(self) -> tuple[type["MappedRows"], tuple[Path, int]]:
        """Worker processes open the file anew."""
        return MappedRows, (self.path, self.axes)
