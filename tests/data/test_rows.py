"""Rows from disk: the same as the array's, and nothing held that was not asked for."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latentfaces.data import rows as rows_module
from latentfaces.data.rows import MappedRows, RowFile
from latentfaces.errors import UserError


@pytest.fixture
def array(tmp_path: Path) -> np.ndarray:
    array = np.random.default_rng(0).integers(0, 255, (23, 3, 5, 4), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    return array


@pytest.mark.parametrize(
    "index",
    [0, 22, -1, slice(3, 9), slice(None), np.array([5, 5, 0, 22]), np.array([[1, 2], [0, 22]]), np.array([], int)],
)
def test_rows_are_the_arrays(index: int | slice | np.ndarray, array: np.ndarray, tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "a.npy")
    assert len(rows) == 23
    assert np.array_equal(rows[index], array[index])
    assert rows[index].shape == array[index].shape


def test_a_row_beyond_the_end_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        RowFile(tmp_path / "a.npy")[np.array([23])]


def test_a_file_cut_while_in_use_is_named(array: np.ndarray, tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "a.npy")
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(UserError, match=r"a\.npy"):
        rows[np.array([22])]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_rows_read_by_two_threads_are_the_arrays(
    array: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(rows_module, "LARGE", 1)
    numbers = np.random.default_rng(1).permutation(23)[:count]
    rows, out = RowFile(tmp_path / "a.npy"), np.empty((count, 3, 5, 4), np.uint8)
    rows.take(numbers, out)
    assert np.array_equal(out, array[numbers])


@pytest.mark.parametrize("numbers", [[22, 0], [0, 22]])
def test_either_thread_tells_of_a_file_that_was_cut(
    array: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: list[int]
) -> None:
    monkeypatch.setattr(rows_module, "LARGE", 1)
    rows = RowFile(tmp_path / "a.npy")
    os.truncate(tmp_path / "a.npy", 200)
    with pytest.raises(UserError, match=r"a\.npy ends before row 22"):
        rows.take(np.array(numbers), np.empty((2, 3, 5, 4), np.uint8))


def test_a_worker_process_opens_it_anew(array: np.ndarray, tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(RowFile(tmp_path / "a.npy")))
    assert np.array_equal(copy[7], array[7])


def test_rows_of_a_watched_map_are_the_arrays_until_its_file_is_cut(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    rows = pickle.loads(pickle.dumps(MappedRows(path, axes=2)))
    flat = array.reshape(23 * 3, 5, 4)
    for index in (0, 68, np.array([5, 5, 0, 68])):
        assert np.array_equal(rows[index], flat[index])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(UserError, match=r"a\.npy was cut since it was written, to 1,507 of 1,508 bytes: delete it"):
        rows[0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat_over_a_set_of_70000(tmp_path: Path) -> None:
    # 13.8 GB that take no room on disk: the file is one hole.
    code = f"""
import numpy as np
from pathlib import Path
from latentfaces.data.datasets import Draws, FFHQDataset
from latentfaces.data.rows import RowFile

def resident():
    return next(int(l.split()[1]) / 1024 for l in open("/proc/self/status") if l.startswith("VmRSS"))

path = Path({str(tmp_path / "big.npy")!r})
np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(70_000, 3, 256, 256))
dataset = FFHQDataset(RowFile(path), np.arange(70_000))
def batch(first):
    items = np.arange(first, 70_000, 1094)
    return dataset.__getitems__(Draws(items, items % 2 == 0))
batch(0)
before = resident()
for first in range(1, 40):
    batch(first)
print(resident() - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(grown) < 50  # megabytes; a map would hold all 490 that were read
