"""The command that packs without training: the pack, what it prints, and one line for an error."""

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.kaggle_stand_in import Kaggle

from latentfaces.cli import prepare
from latentfaces.data import FFHQDataModule, open_pack

Prepare = Callable[..., None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Prepare:
    """`command(source, "--resolution", "8", ...)` with packs in `tmp_path / "data"`."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["prepare", *map(str, arguments), "--folder", str(tmp_path / "data")])
        prepare.main()

    return run


def failure(command: Prepare, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Return a failing command's exit status, as the shell would see it, and what it says of its failure."""
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    said, code = capsys.readouterr().err, stopped.value.code
    return (code, said) if isinstance(code, int) else (1, f"{said}{code}")


def test_pack_is_made_and_its_folder_is_told(
    command: Prepare, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(photos, "--resolution", 8, "--val-every", 4, "--licence", "CC BY 4.0")
    folder = tmp_path / "data" / "photos-8"
    assert open_pack(folder).manifest["source"]["licence"] == "CC BY 4.0"
    assert f"{folder}: 12 images, 3 held out (one image in 4)" in capsys.readouterr().out
    assert open_pack(folder).images.shape == (12, 3, 8, 8)


def test_training_takes_the_pack_as_it_is(command: Prepare, photos: Path, tmp_path: Path) -> None:
    command(photos, "--resolution", 8, "--val-every", 4, "--filter", "bicubic")
    folder = tmp_path / "data" / "photos-8"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    data = FFHQDataModule.from_photos(
        photos, folder=tmp_path / "data", resolution=8, batch_size=2, val_every=4, filter="bicubic"
    )
    assert data.pack().folder == folder
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before


def test_word_ffhq_is_fetched_with_its_licence_for_training_without_a_root(
    command: Prepare, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[Path] = []

    def download(target: Path) -> Path:
        targets.append(target)
        return photos.rename(target) if photos.exists() else target

    monkeypatch.setattr("latentfaces.data.kaggle.download_ffhq", download)
    monkeypatch.setattr("latentfaces.data.datamodule.download_ffhq", download)
    (tmp_path / "data").mkdir()
    command("ffhq", "--resolution", 8)
    data = FFHQDataModule.from_ffhq(None, tmp_path / "data", resolution=8, batch_size=2)
    assert targets[0] == tmp_path / "data" / "ffhq.zip"
    assert data.pack().folder == tmp_path / "data" / "ffhq-8"
    assert data.pack().manifest["source"]["licence"] == "CC BY-NC-SA 4.0"


def test_pack_that_was_taken_along_needs_neither_photos_nor_network(
    command: Prepare, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(target: Path) -> Path:
        raise AssertionError("asked Kaggle")

    monkeypatch.setattr("latentfaces.data.kaggle.download_ffhq", lambda target: photos.rename(target))
    monkeypatch.setattr("latentfaces.data.datamodule.download_ffhq", refuse)
    (tmp_path / "data").mkdir()
    command("ffhq", "--resolution", 8)
    (tmp_path / "data" / "ffhq.zip").rename(tmp_path / "left behind")
    data = FFHQDataModule.from_ffhq(None, tmp_path / "data", resolution=8, batch_size=2)
    assert data.pack().manifest["num_images"] == 12


def test_damaged_photo_can_be_skipped(command: Prepare, photos: Path, tmp_path: Path) -> None:
    (photos / "4.png").write_bytes(b"not a picture")
    command(photos, "--resolution", 8, "--on-bad-image", "skip")
    assert open_pack(tmp_path / "data" / "photos-8").manifest["num_images"] == 11


def test_mistake_exits_with_two(command: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failure(command, capsys, tmp_path / "nowhere", "--resolution", 8)[0] == 2


def test_missing_source_is_one_sentence(command: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = failure(command, capsys, tmp_path / "nowhere", "--resolution", 8)
    assert status != 0
    assert said.strip() == (f"error: {tmp_path / 'nowhere'} does not exist. Use a folder or .zip of images, or ffhq.")


def test_broken_zip_is_one_sentence(command: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "faces.zip").write_bytes(b"PK\3\4 and no more")
    status, said = failure(command, capsys, tmp_path / "faces.zip", "--resolution", 8)
    assert status != 0
    assert said.startswith(f"error: {tmp_path / 'faces.zip'} (16 bytes) is not a readable .zip")
    assert "\n" not in said.strip()


@pytest.mark.parametrize("step", ["pwrite", "fsync"])
def test_full_disk_is_one_line_with_its_path(
    command: Prepare,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    def of_full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, of_full_disk)
    status, printed = failure(command, capsys, photos, "--resolution", 8)
    assert status == 2
    assert printed.startswith(f"error: {tmp_path / 'data'}")
    assert "No space left on device. Free some space" in printed
    assert "\n" not in printed.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_not_utf8_are_escaped(
    command: Prepare, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", printed)
    (photos / os.fsdecode(b"Jos\xe9.cr3")).write_bytes(b"x")
    (photos / "3.png").rename(photos / os.fsdecode(b"Jos\xe9.png"))
    (photos / "4.png").write_bytes(b"x")
    (photos / "4.png").rename(photos / os.fsdecode(b"Zo\xeb.png"))
    command(photos.rename(tmp_path / os.fsdecode(b"Jos\xe9")), "--resolution", 8, "--on-bad-image", "skip")
    printed.flush()
    assert b"1 file(s) (.cr3), such as Jos\\udce9.cr3" in printed.buffer.getvalue()  # type: ignore[attr-defined]
    (skipped,) = open_pack(tmp_path / "data" / os.fsdecode(b"Jos\xe9-8")).manifest["skipped"]
    assert "Zo\\udceb.png cannot be read" in skipped


def test_another_licence_for_ffhq_is_refused_before_anything_is_fetched(
    command: Prepare, kaggle: Kaggle, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = failure(command, capsys, "ffhq", "--resolution", 8, "--licence", "mine")
    assert status == 2
    assert said == "error: --licence=mine has no effect: FFHQ is under CC BY-NC-SA 4.0. Omit it.\n"
    assert kaggle.calls == []


@pytest.mark.parametrize("wrong", [("--resolution", 0), ("--resolution", -8), ("--resolution", 8, "--val-every", 1)])
def test_number_below_one_is_refused(
    command: Prepare, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[object, ...]
) -> None:
    status, said = failure(command, capsys, photos, *wrong)
    assert status == 2
    assert "--resolution must be at least 1, and --val-every at least 2" in said
    assert not (tmp_path / "data").exists()


def test_sound_photos_are_said_to_be_sound(command: Prepare, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command(photos, "--resolution", 8, "--verify")
    assert "The pack and its 12 images are unchanged" in capsys.readouterr().out
