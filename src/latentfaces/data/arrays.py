"""Arrays on disk, mapped for reading, and written row by row so that a killed process can be resumed."""

import json
import math
import os
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from latentfaces.errors import UserError
from latentfaces.files import atomic_write, file_lock, require_space


def open_array(path: Path) -> "np.memmap[Any, Any]":
    """Map an .npy file for reading.

    Raises:
        UserError: the file is missing, truncated or in another format.
    """
    try:
        return npy.open_memmap(path, mode="r")  # raises where the file is shorter than its header says
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise UserError(f"{path} is missing or damaged. Delete it and run again.") from error


def write_at(file: FileIO, values: NDArray[Any], offset: int) -> None:
    """Write all bytes of an array at an offset.

    Raises:
        OSError: the disk is full, for example; with the name of the file.
    """
    data = values.reshape(-1).view(np.uint8).data
    try:
        while data:
            written = os.pwrite(file.fileno(), data, offset)  # may write less than it was given
            data, offset = data[written:], offset + written
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from error


class ResumableArray:
    """An .npy file that is written row by row, and resumed after a kill.

    Until `finish`, the rows are in `<stem>.partial.npy`, and `<stem>.state.npy` has one record per row, whose last byte
    is zero while any of it is missing. Rows are written at their offsets, not through a memory map: ranks on several
    machines can fill rows of one page, and a full disk raises OSError instead of killing the process.

    Args:
        path: the complete file.
        num_rows: rows of the complete file.
        origin: what determines the rows, as JSON, where the file name does not.
        record: dtype of a record, whose last byte is not zero.
    """

    def __init__(self, path: Path, num_rows: int, origin: Any = None, record: DTypeLike = np.uint8) -> None:
        self.path, self.num_rows, self.origin, self.record = path, num_rows, origin, np.dtype(record)
        self.partial = path.with_suffix(".partial.npy")
        self.state_path = path.with_suffix(".state.npy")
        self.origin_path = path.with_suffix(".origin.json")
        self.files: tuple[FileIO, FileIO] | None = None

    @property
    def has_origin(self) -> bool:
        """Whether the file on disk, if there is one, has the same origin."""
        try:
            return not self.origin_path.exists() or json.loads(self.origin_path.read_text()) == self.origin
        except ValueError:
            return False

    @property
    def is_begun(self) -> bool:
        """Whether there is an incomplete file to resume."""
        try:
            state, rows = open_array(self.state_path), open_array(self.partial)
        except UserError:
            return False
        return state.dtype == self.record and len(state) <= len(rows) and self.has_origin

    def create(self, row_shape: tuple[int, ...], dtype: DTypeLike) -> None:
        """Create the empty file; only one process may call this.

        Raises:
            UserError: the disk has too little space.
        """
        num_bytes = self.num_rows * math.prod(row_shape) * np.dtype(dtype).itemsize
        require_space(self.path, num_bytes, self.path.name)
        self.state_path.unlink(missing_ok=True)
        npy.open_memmap(self.partial, mode="w+", dtype=np.dtype(dtype), shape=(self.num_rows, *row_shape))
        if self.origin is not None:
            with atomic_write(self.origin_path) as file:
                file.write(json.dumps(self.origin).encode())
        self.write_state(np.zeros(self.num_rows, self.record))  # last: from here on the file can be resumed

    def write_state(self, state: NDArray[Any]) -> None:
        """Write all records."""
        with atomic_write(self.state_path) as file:
            np.save(file, state)

    def open(self) -> None:
        """Open the incomplete file for writing."""
        rows, state = open_array(self.partial), open_array(self.state_path)
        self.row_shape, self.dtype, self.offsets = rows.shape[1:], rows.dtype, (rows.offset, state.offset)
        self.files = FileIO(self.partial, "r+"), FileIO(self.state_path, "r+")

    def resume(self) -> int:
        """Open an incomplete file, extended to `num_rows`, and return its number of leading complete rows."""
        if self.path.exists():
            return self.num_rows
        if not self.is_begun:
            return 0
        missing = self.num_rows - len(self.records)
        if missing > 0:
            rows = open_array(self.partial)
            header = {"descr": npy.dtype_to_descr(rows.dtype), "fortran_order": False}
            with self.partial.open("r+b") as file:
                # NumPy leaves room for the digits of the first axis, so that the header keeps its length.
                npy.write_array_header_1_0(file, header | {"shape": (self.num_rows, *rows.shape[1:])})
                assert file.tell() == rows.offset
                file.truncate(rows.offset + self.num_rows * rows[:1].nbytes)
            self.write_state(np.append(self.records, np.zeros(missing, self.record)))
        self.open()
        return int(np.append(self.done, False).argmin())

    @property
    def records(self) -> NDArray[Any]:
        """(N,) records of the rows of the incomplete file."""
        return np.array(open_array(self.state_path))

    @property
    def done(self) -> NDArray[np.bool_]:
        """(N,) whether each row of the incomplete file is complete."""
        records = self.records
        return records.view(np.uint8).reshape(len(records), -1)[:, -1] != 0

    def write(self, start: int, rows: NDArray[Any], records: NDArray[Any] | None = None) -> None:
        """Write rows from `start` on; the first call creates the file if it is not open."""
        if self.files is None:
            with file_lock(self.path):
                if not self.is_begun:  # another process may have created it
                    self.create(rows.shape[1:], rows.dtype)
            self.open()
        assert self.files is not None
        assert rows.shape[1:] == self.row_shape
        if records is None:
            records = np.ones(len(rows), self.record)
        rows = np.ascontiguousarray(rows, self.dtype)
        sizes = (rows[:1].nbytes, self.record.itemsize)
        # The records last: rows without them are written again.
        for file, values, offset, size in zip(self.files, (rows, records), self.offsets, sizes, strict=True):
            write_at(file, values, offset + start * size)

    def flush(self) -> None:
        """Wait until the rows are on disk, for other machines too."""
        for file in self.files or ():
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Rename the complete file, unless another process has done so, and remove the rest."""
        if not self.path.exists():
            self.flush()
            self.partial.replace(self.path)
        self.discard()

    def discard(self) -> None:
        """Remove the incomplete file."""
        for path in (self.state_path, self.origin_path, self.partial):
            path.unlink(missing_ok=True)

    def read(self) -> NDArray[Any]:
        """Map all rows, also of the incomplete file. Changes to them stay in memory."""
        return npy.open_memmap(self.path if self.path.exists() else self.partial, mode="c")
