"""Aligned faces of a folder: what is written, resumed and refused, with a stand-in for the detector."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.photo_files import write_folder, write_zip
from helpers.stand_ins import save_photo
from PIL import Image

from latentfaces.cli import prepare
from latentfaces.data import FFHQDataModule, align
from latentfaces.data.align import Face
from latentfaces.data.aligning import Aligning, align_photos
from latentfaces.data.crops import crop
from latentfaces.data.label_files import identities
from latentfaces.data.sources import Photos
from latentfaces.errors import UserError

MARKS = np.array([[40.0, 50], [60, 50], [50, 60], [42, 80], [58, 80]])
FACE = Face(MARKS, np.array([30.0, 35, 70, 90]), 0.9)


def find_nothing_in_black(photo: Image.Image) -> list[Face]:
    """Stand-in for the detector: one face, in wide photos a second one, in black photos none."""
    if not np.asarray(photo).any():
        return []
    second = Face(MARKS + np.array([120, 0]), FACE.box + np.array([120, 0, 120, 0]), 0.8)
    return [FACE, second] if photo.width > 150 else [FACE]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The stand-in, and the widths of the photos that it was given."""
    seen: list[int] = []

    def find(photo: Image.Image) -> list[Face]:
        seen.append(photo.width)
        return find_nothing_in_black(photo)

    monkeypatch.setattr(align, "session", lambda: None)
    monkeypatch.setattr(align, "find_faces", find)
    return seen


@pytest.fixture
def photos(tmp_path: Path, detector: list[int]) -> Photos:
    """One face, two faces, none, and what is no image."""
    (tmp_path / "photos" / "set").mkdir(parents=True)
    for number, (name, width) in enumerate({"1.png": 110, "set/two.png": 240, "set/1.png": 120}.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (3, 120, width), dtype=np.uint8)
        save_photo(pixels, tmp_path / "photos" / name)
    save_photo(np.zeros((3, 100, 100), np.uint8), tmp_path / "photos" / "black.png")
    (tmp_path / "photos" / "torn.jpg").write_bytes(b"no image")
    return Photos(tmp_path / "photos")


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "faces.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_face_is_written_or_listed_with_the_reason(photos: Photos, tmp_path: Path) -> None:
    faces = align_photos(photos, tmp_path / "out", 32)
    assert faces.names == ["1.png", "set/1.png", "set/two-face2.png", "set/two.png"]
    assert faces.left_out() == []
    rows = {(row["source"], row["face"]): row for row in rows_of(tmp_path / "out")}
    assert {key: row["file"] for key, row in rows.items() if row["file"]} == {
        ("1.png", "1"): "1.png",
        ("set/1.png", "1"): "set/1.png",
        ("set/two.png", "1"): "set/two.png",
        ("set/two.png", "2"): "set/two-face2.png",
    }
    assert rows["black.png", ""]["left_out"] == "no face found"
    assert rows["torn.jpg", ""]["left_out"].startswith("not readable: ")
    row = rows["1.png", "1"]
    assert [float(row[key]) for key in ("left", "top", "right", "bottom", "side")] == [30, 35, 70, 90, 108]
    assert [float(row[f"nose_{axis}"]) for axis in "xy"] == [50, 60]
    with Image.open(tmp_path / "out" / "1.png") as image:
        assert np.array_equal(image, crop(photos.photo("1.png"), FACE.square, 32))
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width == 1024


def test_small_faces_are_left_out(photos: Photos, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No face was found"):
        align_photos(photos, tmp_path / "out", 256)
    reasons = [row["left_out"] for row in rows_of(tmp_path / "out") if row["face"]]
    assert reasons == ["too small: 108 pixels, 128 needed"] * 4


def test_second_call_reads_no_photo(photos: Photos, tmp_path: Path, detector: list[int]) -> None:
    align_photos(photos, tmp_path / "out", 32)
    detector.clear()
    assert len(align_photos(photos, tmp_path / "out", 32).names) == 4
    assert detector == []


def test_run_that_was_killed_goes_on_with_what_is_missing(
    photos: Photos, tmp_path: Path, detector: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Aligning, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            align_photos(photos, tmp_path / "out", 32)
    progress = tmp_path / "out" / "progress.csv"
    lines = progress.read_text().splitlines(keepends=True)
    progress.write_text("".join(lines[:4]) + lines[4][:9])  # 1.png, black.png, and torn.jpg; a row is cut
    detector.clear()
    align_photos(photos, tmp_path / "out", 32)
    assert sorted(detector)[-2:] == [120, 240]
    assert 110 not in detector
    align_photos(photos, tmp_path / "once", 32)
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "once")
    assert not progress.exists()


def test_other_contents_of_the_folder_are_refused(photos: Photos, tmp_path: Path) -> None:
    align_photos(photos, tmp_path / "out", 32)
    with pytest.raises(UserError, match="out has other contents than the 48-pixel faces of photos"):
        align_photos(photos, tmp_path / "out", 48)
    write_folder(tmp_path / "mine", {"notes.txt": b"x"})
    with pytest.raises(UserError, match="mine has other contents"):
        align_photos(photos, tmp_path / "mine", 32)


def test_folder_inside_of_the_photos_is_refused(photos: Photos, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is inside of"):
        align_photos(photos, tmp_path / "photos" / "faces", 32)
    assert not (tmp_path / "photos" / "faces").exists()


def test_names_that_would_collide_keep_their_suffix(photos: Photos, tmp_path: Path) -> None:
    (tmp_path / "photos" / "1.bmp").write_bytes((tmp_path / "photos" / "1.png").read_bytes())
    (tmp_path / "photos" / "set" / "two-face2.bmp").write_bytes((tmp_path / "photos" / "1.png").read_bytes())
    names = align_photos(Photos(tmp_path / "photos"), tmp_path / "out", 32).names
    assert {"1.png.png", "1.bmp.png", "set/two-face2.png", "set/two-face2.bmp.png"} < set(names)


def test_name_that_is_that_of_another_photo_with_a_suffix_is_not_overwritten(photos: Photos, tmp_path: Path) -> None:
    for name in ("1.bmp", "1.bmp.png"):
        (tmp_path / "photos" / name).write_bytes((tmp_path / "photos" / "1.png").read_bytes())
    names = align_photos(Photos(tmp_path / "photos"), tmp_path / "out", 32).names
    assert {"1.png.png", "1.bmp.png", "1.bmp.png.png"} < set(names)


def test_identities_follow_the_faces(photos: Photos, tmp_path: Path) -> None:
    text = "name,identity\n1.png,ann\nset/1.png,ann\nset/two.png,bob\nblack.png,cid\ntorn.jpg,cid\n"
    (tmp_path / "photos" / "identity.csv").write_text(text)
    faces = align_photos(Photos(tmp_path / "photos"), tmp_path / "out", 32)
    assert identities(faces) == ["ann", "ann", "bob", "bob"]


@pytest.mark.parametrize("as_zip", [False, True])
def test_training_packs_the_aligned_faces(photos: Photos, tmp_path: Path, as_zip: bool) -> None:
    root = tmp_path / "photos"
    if as_zip:
        files = {name: (root / name).read_bytes() for name in photos.names}
        root = write_zip(tmp_path / "photos.zip", files)
    options = {"folder": tmp_path / "data", "resolution": 32, "batch_size": 1, "val_every": 2}
    data = FFHQDataModule.from_photos(root, align=True, **options)
    assert data.pack().folder == tmp_path / "data" / "photos-aligned-32"
    expected = crop(photos.photo("1.png"), FACE.square, 32)
    assert np.array_equal(data.pack().images[0].transpose(1, 2, 0), expected)
    assert data.pack().manifest["num_images"] == 4
    root.rename(tmp_path / "elsewhere")
    assert FFHQDataModule.from_photos(root, align=True, **options).pack().manifest["num_images"] == 4


@pytest.mark.parametrize("as_zip", [False, True])
def test_labels_are_found_beside_the_photos(photos: Photos, tmp_path: Path, as_zip: bool) -> None:
    root = write_folder(photos.root, {"labels.csv": b"name,smile\n1.png,1\nset/two.png,0\n"})
    if as_zip:
        files = {name: (root / name).read_bytes() for name in ("1.png", "set/two.png", "labels.csv")}
        root = write_zip(tmp_path / "photos.zip", files)
    options = {"folder": tmp_path / "data", "resolution": 32, "batch_size": 1, "val_every": 4}
    data = FFHQDataModule.from_photos(root, align=True, labels="labels.csv", label_types={"smile": "binary"}, **options)
    known = dict(zip(data.pack().manifest["names"], data.use_labels().values[:, 0].tolist(), strict=True))
    assert known["1.png"] == 1
    assert known["set/two.png"] == 0
    assert np.isnan(known["set/two-face2.png"])


def test_complete_faces_may_be_in_a_read_only_folder(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = align_photos(photos, tmp_path / "out", 32).names

    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("latentfaces.data.aligning.file_lock", read_only)
    assert align_photos(photos, tmp_path / "out", 32).names == names


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["latentfaces-prepare", *map(str, arguments)])
        prepare.main()

    return run


def test_command_writes_256_pixels_by_default(
    photos: Photos, tmp_path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(photos.root, "--align", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "alignment.json").read_text())["size"] == 256
    command(photos.root, "--align", tmp_path / "small", "--resolution", 32)
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'small'}: 4 faces taken, 2 left out, see faces.csv" in printed
    assert "1 no face found" in printed


def test_options_without_effect_are_refused(
    photos: Photos, tmp_path: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(photos.root, "--align", tmp_path / "out", "--verify")
    assert "--verify has no effect with --align" in capsys.readouterr().err


def test_missing_extra_is_one_line(
    photos: Photos,
    tmp_path: Path,
    command: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing() -> None:
        raise UserError("Run: pip install 'latentfaces[align]'")

    monkeypatch.setattr(align, "session", missing)
    with pytest.raises(SystemExit):
        command(photos.root, "--align", tmp_path / "out")
    assert capsys.readouterr().err == "error: Run: pip install 'latentfaces[align]'\n"
    assert not (tmp_path / "out").exists()
