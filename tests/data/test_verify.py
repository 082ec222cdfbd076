"""Verification: images that changed or are missing, and a pack with a flipped bit."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from latentfaces.data.packing import find_or_write_pack
from latentfaces.data.sources import Photos
from latentfaces.data.verify import damaged_files

WritePhoto = Callable[..., None]


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
