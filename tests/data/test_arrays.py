"""Arrays on disk: truncated files, resumed and concurrent writes, short writes and full disks."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentfaces.data.arrays import ResumableArray, open_array
from latentfaces.errors import UserError

ROWS = np.arange(20, dtype=np.float32).reshape(10, 2)
PWRITE = os.pwrite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.npy"


def resumed(path: Path, num_rows: int = 10, origin: object = None) -> ResumableArray:
    array = ResumableArray(path, num_rows, origin)
    array.resume()
    return array


def write(array: ResumableArray, numbers: range) -> None:
    array.write(numbers.start, ROWS[numbers.start : numbers.stop])


@pytest.mark.parametrize("size", [None, 0, 5, 130, 207])
def test_missing_or_truncated_file_is_reported_with_its_name(path: Path, size: int | None) -> None:
    if size is not None:
        np.save(path, ROWS)
        os.truncate(path, size)
    with pytest.raises(UserError, match=r"rows\.npy is missing or damaged\. Delete it"):
        open_array(path)


def test_complete_file_has_the_rows_and_nothing_else_stays(path: Path) -> None:
    array = ResumableArray(path, 10, {"seed": 0})
    for start in (6, 0, 3, 9):
        write(array, range(start, min(start + 3, 10)))
    assert not path.exists()
    assert array.done.all()
    array.finish()
    assert np.array_equal(np.load(path), ROWS)
    assert [entry.name for entry in path.parent.glob("[!.]*")] == [path.name]


def test_resumed_file_has_the_rows_and_the_records_written_before(path: Path) -> None:
    record = np.dtype([("name", "S3"), ("kind", "u1")])
    array = ResumableArray(path, 10, record=record)
    array.write(4, ROWS[4:6], np.array([("abc", 2), ("d", 1)], record))
    again = ResumableArray(path, 10, record=record)
    assert again.resume() == 0
    assert np.flatnonzero(again.done).tolist() == [4, 5]
    assert again.records[[4, 5]].tolist() == [(b"abc", 2), (b"d", 1)]
    assert np.array_equal(again.read()[4:6], ROWS[4:6])


def test_resume_returns_the_number_of_leading_rows(path: Path) -> None:
    assert ResumableArray(path, 10).resume() == 0
    array = resumed(path)
    write(array, range(4))
    write(array, range(6, 8))
    assert ResumableArray(path, 10).resume() == 4
    write(array, range(4, 6))
    assert ResumableArray(path, 10).resume() == 8
    write(array, range(8, 10))
    array.finish()
    assert ResumableArray(path, 10).resume() == 10


def test_incomplete_file_can_be_enlarged(path: Path) -> None:
    write(resumed(path, num_rows=4), range(4))
    array = ResumableArray(path, 10)
    assert array.resume() == 4
    write(array, range(4, 10))
    array.finish()
    assert np.array_equal(np.load(path), ROWS)


def test_two_processes_that_write_the_same_rows_do_no_harm(path: Path) -> None:
    first, second = resumed(path), resumed(path)
    write(first, range(4))
    write(second, range(6))  # finds the file of the first
    write(first, range(4, 10))
    first.finish()
    write(second, range(6, 10))
    second.finish()
    assert np.array_equal(np.load(path), ROWS)


def test_another_origin_is_not_resumed(path: Path) -> None:
    write(resumed(path, origin={"seed": 0}), range(4))
    assert ResumableArray(path, 10, {"seed": 0}).is_begun
    other = ResumableArray(path, 10, {"seed": 1})
    assert (other.has_origin, other.is_begun, other.resume()) == (False, False, 0)


@pytest.mark.parametrize("damaged", ["state_path", "partial"])
def test_incomplete_file_that_was_truncated_is_written_from_scratch(path: Path, damaged: str) -> None:
    write(resumed(path), range(6))
    broken: Path = getattr(ResumableArray(path, 10), damaged)
    os.truncate(broken, broken.stat().st_size - 5)
    array = ResumableArray(path, 10)
    assert array.resume() == 0
    write(array, range(10))
    array.finish()
    assert np.array_equal(np.load(path), ROWS)


def test_change_to_rows_that_were_read_stays_in_memory(path: Path) -> None:
    array = resumed(path)
    write(array, range(10))
    array.read()[:] = 0
    assert np.array_equal(array.read(), ROWS)


def test_short_writes_are_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: PWRITE(file, data[: max(1, len(data) // 2)], offset))
    array = resumed(path)
    write(array, range(10))
    array.finish()
    assert np.array_equal(np.load(path), ROWS)


def disk_of(num_bytes: int) -> Callable[..., int]:
    """Return a pwrite of a disk that has room for some bytes: the last write is short, the next one fails."""
    left = num_bytes

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = PWRITE(file, data[:left], offset)
        left -= written
        return written

    return pwrite


def test_row_that_a_full_disk_cut_is_written_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = resumed(path)
    write(array, range(4))
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", disk_of(10))
        with pytest.raises(OSError, match="No space left") as caught:
            write(array, range(4, 6))
    assert str(caught.value.filename).endswith("rows.partial.npy")
    again = ResumableArray(path, 10)
    assert again.resume() == 4
    write(again, range(4, 10))
    again.finish()
    assert np.array_equal(np.load(path), ROWS)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_memory_stays_flat_over_a_set_of_70000(tmp_path: Path) -> None:
    # 13.8 GB that take no room on disk: the file is one hole.
    code = f"""
import numpy as np
from pathlib import Path
from latentfaces.data.arrays import open_array
from latentfaces.data.datasets import Draws, FFHQDataset

def anonymous():
    return next(int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("RssAnon"))

path = Path({str(tmp_path / "big.npy")!r})
np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(70_000, 3, 256, 256))
dataset = FFHQDataset(open_array(path), np.arange(70_000))
def batch(first):
    items = np.arange(first, 70_000, 1094)
    return dataset.__getitems__(Draws(items, items % 2 == 0))
batch(0)
before = anonymous()
for first in range(1, 40):
    batch(first)
print(anonymous() - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(grown) < 50  # MB; 490 were read
