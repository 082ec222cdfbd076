"""Atomic writes: a path has the old or the new content, complete. Locks: a wait is printed and limited."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentfaces.files import append, atomic_write, file_lock, read_csv


def test_the_file_appears_when_it_is_complete_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_in_the_middle_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"hal")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_on_the_disk_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, path.exists())))
    with atomic_write(path) as file:
        file.write(b"new")
    assert synced == [(3, False)]


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    code = """
import os, signal, sys
from pathlib import Path
from latentfaces.errors import UserError
from latentfaces.files import atomic_write, file_lock
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"hal")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_cells_of_a_csv_keep_their_line_breaks_and_a_row_that_was_cut_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    names = ["a\nb", "a\r\nb", "a\u2028b", "a\x85b", "Jos\u00e9"]
    path.write_bytes(b"name,x\r\n")
    append(path, "".join(f'"{name}",1\r\n' for name in names))
    append(path, "Zo")
    with path.open("ab") as file:
        file.write("\u00eb".encode()[:1])
    assert read_csv(path) == [{"name": name, "x": "1"} for name in names]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """Return a path that another process holds for a second."""
    path = tmp_path / "faces-64"
    code = f"""
import time
from pathlib import Path
from latentfaces.files import file_lock
with file_lock(Path({str(path)!r})):
    print("locked", flush=True)
    time.sleep(1)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield path
        process.kill()


def test_wait_for_a_lock_is_printed(
    locked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("latentfaces.files.LOCK_NOTICE", 0.1)
    with file_lock(locked):
        pass
    assert f"Waiting for another process that writes {locked}" in capsys.readouterr().out
