"""Rows on disk: they come back, go on after a kill, and are never written twice."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentfaces.tasks.feature_cache import GrowingRows

ROWS = torch.arange(20.0).view(10, 2)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = GrowingRows(tmp_path / "rows.bin", "these")
    rows.extend(ROWS.split(3))
    assert torch.equal(rows.read(), ROWS)
    assert torch.equal(GrowingRows(tmp_path / "rows.bin", "these").read(), ROWS)


def test_pictures_are_rows_too(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    GrowingRows(tmp_path / "rows.bin", "these").extend([images])
    assert torch.equal(GrowingRows(tmp_path / "rows.bin", "these").read(), images)


def test_each_row_is_written_once_however_many_there_are(tmp_path: Path) -> None:
    rows, sizes = GrowingRows(tmp_path / "rows.bin", "these"), []
    for batch in ROWS.split(2):
        rows.extend([batch])
        sizes.append((tmp_path / "rows.bin").stat().st_size)
    assert sizes == [16, 32, 48, 64, 80]


def test_what_a_kill_cut_off_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    GrowingRows(path, "these").extend([ROWS[:6]])
    path.write_bytes(path.read_bytes()[:-3])
    rows = GrowingRows(path, "these")
    assert len(rows) == 5
    rows.extend([ROWS[5:]])
    assert torch.equal(rows.read(), ROWS)


def test_two_that_write_the_same_do_no_harm(tmp_path: Path) -> None:
    first = GrowingRows(tmp_path / "rows.bin", "these")
    first.extend([ROWS[:4]])
    second = GrowingRows(tmp_path / "rows.bin", "these")
    for one in (first, second):
        one.extend([ROWS[4:]])
    assert torch.equal(GrowingRows(tmp_path / "rows.bin", "these").read(), ROWS)


def test_rows_after_those_that_are_kept_are_replaced(tmp_path: Path) -> None:
    rows = GrowingRows(tmp_path / "rows.bin", "these")
    rows.extend([ROWS])
    rows.keep(20)
    assert len(rows) == 10
    rows.keep(4)
    rows.extend([-ROWS[4:6]])
    assert torch.equal(rows.read(), torch.cat([ROWS[:4], -ROWS[4:6]]))


def test_rows_of_something_else_are_refused(tmp_path: Path) -> None:
    GrowingRows(tmp_path / "rows.bin", {"seed": 0}).extend([ROWS])
    with pytest.raises(ValueError, match="of other rows"):
        GrowingRows(tmp_path / "rows.bin", {"seed": 1})


def test_a_change_to_what_was_read_stays_in_memory(tmp_path: Path) -> None:
    rows = GrowingRows(tmp_path / "rows.bin", "these")
    rows.extend([ROWS])
    read: Tensor = rows.read()
    read.zero_()
    assert torch.equal(rows.read(), ROWS)
