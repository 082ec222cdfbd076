"""The user's photos: reading, warnings and errors."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import drawn, save_photo
from PIL import Image

from latentfaces.data.pack import Pack
from latentfaces.errors import UserError
from latentfaces.tasks.photos import held_out_photos, read_photos


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A folder of five photos."""
    (tmp_path / "album").mkdir()
    for number, pixels in enumerate(drawn(5, first=900)):
        save_photo(pixels, tmp_path / "album" / f"{number}.png")
    return tmp_path / "album"


def test_picture_folder_and_zip_give_the_same_pixels(album: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "album.zip", "w") as archive:
        for path in album.iterdir():
            archive.write(path, path.name)
    from_folder = read_photos(str(album), 16, 5, seed=0)
    from_zip = read_photos(str(tmp_path / "album.zip"), 16, 5, seed=0)
    assert from_folder.names == from_zip.names
    assert torch.equal(from_folder.images, from_zip.images)
    for name, image in zip(from_folder.names, from_folder.images, strict=True):
        assert torch.equal(read_photos(str(album / name), 16, 5, seed=0).images[0], image)
        assert np.array_equal(image, drawn(1, first=900 + int(name[0]))[0])


def test_photos_come_in_the_order_of_their_names(album: Path) -> None:
    for seed in range(3):
        assert read_photos(str(album), 16, 5, seed).names == [f"{number}.png" for number in range(5)]


def test_the_seed_chooses_among_more(album: Path) -> None:
    chosen = [tuple(read_photos(str(album), 16, 2, seed).names) for seed in range(8)]
    assert {len(names) for names in chosen} == {2}
    assert len(set(chosen)) > 1
    assert chosen[3] == tuple(read_photos(str(album), 16, 2, seed=3).names)


def test_a_single_picture_is_read_without_those_beside_it(album: Path) -> None:
    (album / "deep").mkdir()
    (album / "deep" / "0.png").write_bytes(b"no picture")
    assert read_photos(str(album / "0.png"), 16, 4, seed=0).names == ["0.png"]


@pytest.mark.parametrize("name", ["me", ".me.png", "me.gif", "me.png.part"])
def test_a_picture_needs_no_usual_name(name: str, album: Path) -> None:
    data = (album / "0.png").read_bytes()
    (album / name).write_bytes(data)
    image = read_photos(str(album / name), 16, 4, seed=0).images[0]
    assert torch.equal(image, read_photos(str(album / "0.png"), 16, 4, seed=0).images[0])


def test_a_photo_of_a_phone_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "me.HEIC").write_bytes(b"no picture")
    monkeypatch.setattr("latentfaces.tasks.photos.HAS_HEIF", False)
    with pytest.raises(UserError, match=r"me.HEIC needs an extra. Run `pip install 'latentfaces\[photos\]'`"):
        read_photos(str(tmp_path / "me.HEIC"), 16, 1, 0)


def test_held_out_photos_are_taken_without_a_picture(pack: Pack) -> None:
    images = held_out_photos(str(pack.folder), 7, seed=1).images
    held_out = {pack.images[index].tobytes() for index in pack.val_indices}
    assert len({image.numpy().tobytes() for image in images} & held_out) == 7


def write(path: Path, width: int, height: int, orientation: int = 1) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), (200, 150, 120)).save(path, exif=exif)
    return str(path)


WARNED = {
    "wide": ((40, 30, 1), ["me.jpg is not square: its central square is used"]),
    "small": ((12, 12, 1), ["me.jpg was enlarged to 16 pixels"]),
    "square and large": ((32, 32, 1), []),
    "just so": ((16, 16, 3), []),
}


@pytest.mark.parametrize(("shape", "clues"), WARNED.values(), ids=WARNED.keys())
def test_what_is_cut_or_enlarged_is_said(
    shape: tuple[int, int, int], clues: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_photos(write(tmp_path / "me.jpg", *shape), 16, 1, 0)
    said = capsys.readouterr().err
    assert all(clue in said for clue in clues)
    assert said.count("warning:") == bool(clues)


def test_many_photos_of_one_fault_are_one_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "album").mkdir()
    for number in range(6):
        write(tmp_path / "album" / f"{number}.jpg", 20, 18)
    read_photos(str(tmp_path / "album"), 16, 6, 0)
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "(as 5 more)" in said


def test_what_is_no_photo_is_refused_by_name(album: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half.zip").write_bytes(b"PK")
    (tmp_path / "torn.png").write_bytes((album / "0.png").read_bytes()[:60])
    for name, clue in {
        "nowhere.png": "image=.*does not exist",
        "notes.txt": "notes.txt cannot be read .not one of .*PNG",
        "empty": "image=.*contains no images",
        "half.zip": "half.zip .* is not a readable .zip",
        "torn.png": "torn.png cannot be read",
    }.items():
        with pytest.raises(UserError, match=clue):
            read_photos(str(tmp_path / name), 16, 1, 0)
    with pytest.raises(UserError, match=r"task.to_image=nowhere.png does not exist"):
        read_photos("nowhere.png", 16, 1, 0, key="task.to_image")
    with pytest.raises(UserError, match="image= does not exist"):
        read_photos("", 16, 1, 0)
    with pytest.raises(UserError, match="image="):
        held_out_photos(None, 1, 0)
