"""Verification: images that changed, are missing or are not FFHQ's, and a pack with a flipped bit."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from latentfaces.data.packing import find_or_write_pack
from latentfaces.data.sources import FFHQ_JSON, Photos
from latentfaces.data.verify import damaged_files, official_md5
from latentfaces.errors import UserError

WritePhoto = Callable[..., None]
KINDS = {"image": "images1024x1024", "thumbnail": "thumbnails128x128"}


def damage(root: Path, folder: Path) -> list[str]:
    """Return what is wrong with the pack of `root` in `folder`, packed now if need be, and with its photos now."""
    pack = find_or_write_pack(Photos(root), folder, 8)
    return list(damaged_files(pack, Photos(root)))


def as_zip(root: Path) -> Path:
    """Put a folder into a .zip next to it."""
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for path in root.rglob("*.png"):
            archive.write(path, path.relative_to(root))
    return root.with_suffix(".zip")


def test_sound_photos_and_pack_have_no_faults(photos: Path, folder: Path) -> None:
    assert damage(photos, folder) == []
    assert damage(as_zip(photos), folder.with_name("zip-8")) == []


def test_photo_that_changed_and_still_decodes_is_named(photos: Path, folder: Path, write_photo: WritePhoto) -> None:
    pack = find_or_write_pack(Photos(photos), folder, 8)
    write_photo(photos / "7.png", 99)
    assert list(damaged_files(pack, Photos(photos))) == [f"{photos / '7.png'} has changed since it was packed"]


@pytest.mark.parametrize("zipped", [False, True])
def test_photo_that_was_removed_is_named(photos: Path, folder: Path, zipped: bool) -> None:
    pack = find_or_write_pack(Photos(photos), folder, 8)
    (photos / "7.png").unlink()
    (fault,) = damaged_files(pack, Photos(as_zip(photos) if zipped else photos))
    assert "7.png cannot be read" in fault


def test_photo_that_was_skipped_is_no_fault(photos: Path, folder: Path) -> None:
    (photos / "4.png").write_bytes(b"not a picture")
    pack = find_or_write_pack(Photos(photos), folder, 8, on_bad_image="skip")
    assert list(damaged_files(pack, Photos(photos))) == []


@pytest.mark.parametrize("place", [128, -1])
def test_flipped_bit_of_the_pack_is_named(photos: Path, folder: Path, place: int) -> None:
    pack = find_or_write_pack(Photos(photos), folder, 8)
    data = bytearray((folder / "images.npy").read_bytes())
    data[place] ^= 1
    (folder / "images.npy").write_bytes(data)
    assert list(damaged_files(pack, Photos(photos))) == [f"{folder / 'images.npy'} has changed since it was written"]


@pytest.fixture
def ffhq(tmp_path: Path, write_photo: WritePhoto) -> Path:
    """Return FFHQ's folder: three photos of each size, and the list of their checksums."""
    listed: dict[str, dict[str, dict[str, str]]] = {}
    for number in range(3):
        listed[str(number)] = {}
        for kind, (name, side) in zip(KINDS, (("images1024x1024", 24), ("thumbnails128x128", 16)), strict=True):
            file_path = f"{name}/00000/{number:05d}.png"
            write_photo(tmp_path / "ffhq" / file_path, number, side)
            md5 = hashlib.md5((tmp_path / "ffhq" / file_path).read_bytes()).hexdigest()
            listed[str(number)][kind] = {"file_path": file_path, "file_md5": md5}
    (tmp_path / "ffhq" / FFHQ_JSON).write_text(json.dumps(listed))
    return tmp_path / "ffhq"


@pytest.mark.parametrize("kind", KINDS.values())
def test_photos_of_ffhq_pass(ffhq: Path, folder: Path, kind: str) -> None:
    assert len(official_md5(Photos(ffhq / kind))) == 3
    assert damage(ffhq / kind, folder) == []


@pytest.mark.parametrize("kind", KINDS.values())
def test_photo_that_was_wrong_when_it_was_packed_is_named(
    ffhq: Path, folder: Path, write_photo: WritePhoto, kind: str
) -> None:
    wrong = ffhq / kind / "00000" / "00001.png"
    write_photo(wrong, 99)
    assert damage(ffhq / kind, folder) == [f"{wrong} is not FFHQ's (its MD5 differs)"]


def test_thumbnail_in_place_of_the_photo_is_named(ffhq: Path, folder: Path) -> None:
    wrong = ffhq / "images1024x1024" / "00000" / "00001.png"
    wrong.write_bytes((ffhq / "thumbnails128x128" / "00000" / "00001.png").read_bytes())
    assert damage(wrong.parents[1], folder) == [f"{wrong} is not FFHQ's (its MD5 differs)"]


def test_photo_in_a_zip_is_compared_too(ffhq: Path, folder: Path, write_photo: WritePhoto) -> None:
    write_photo(ffhq / "images1024x1024" / "00000" / "00001.png", 99)
    for path in (ffhq / "thumbnails128x128" / "00000").iterdir():
        path.unlink()
    archive = as_zip(ffhq)
    (ffhq / FFHQ_JSON).rename(ffhq.parent / FFHQ_JSON)
    (fault,) = damage(archive, folder)
    assert "00001.png is not FFHQ's" in fault


def test_checksums_that_were_cut_short_are_refused_by_name(ffhq: Path, folder: Path) -> None:
    (ffhq / FFHQ_JSON).write_text((ffhq / FFHQ_JSON).read_text()[:-20])
    with pytest.raises(UserError, match=FFHQ_JSON):
        damage(ffhq / "images1024x1024", folder)


def test_other_photos_have_no_checksums(photos: Path, ffhq: Path) -> None:
    (photos / FFHQ_JSON).write_text((ffhq / FFHQ_JSON).read_text())
    assert official_md5(Photos(photos)) == {}
