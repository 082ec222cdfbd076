"""Packs: the pixels and the manifest, who is held out, damaged pictures, and when a pack is made anew."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentfaces.data.images import decode
from latentfaces.data.pack import Pack, find_or_write_pack, hold_out, open_pack
from latentfaces.data.sources import Photos
from latentfaces.errors import UserError

SIDE = 8


def write_photo(path: Path, number: int, side: int = 16) -> None:
    """Write a gradient that `number` decides."""
    rows, columns = np.mgrid[0:side, 0:side]
    planes = [rows * 9 + number, columns * 9 + 3 * number, rows * 4 + columns * 4 + 7 * number]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack(planes, -1).astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of twelve photos."""
    for number in range(12):
        write_photo(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return where the pack is to lie, two levels below what exists."""
    return tmp_path / "data" / "photos-8"


def packed_names(pack: Pack) -> list[str]:
    """Return the names in the manifest, after checking that each stands for its own pixels."""
    names: list[str] = pack.manifest["names"]
    root = Path(pack.folder).parents[1] / "photos"
    for pixels, name in zip(pack.images, names, strict=True):
        assert np.array_equal(pixels.transpose(1, 2, 0), decode((root / name).read_bytes(), SIDE)[0]), name
    return names


def test_pixels_are_those_of_decode_in_natural_order(photos: Path, folder: Path) -> None:
    pack = find_or_write_pack(Photos(photos), folder, SIDE)
    assert pack.images.shape == (12, 3, SIDE, SIDE)
    assert pack.images.dtype == np.uint8
    assert packed_names(pack) == [f"{number}.png" for number in range(12)]


def test_opening_gives_what_packing_gave(photos: Path, folder: Path) -> None:
    written = find_or_write_pack(Photos(photos), folder, SIDE)
    opened = open_pack(folder)
    assert opened.manifest == written.manifest
    assert np.array_equal(opened.images, written.images)


def test_manifest_says_what_the_pixels_are(photos: Path, folder: Path) -> None:
    source = Photos(photos, licence="CC BY 4.0")
    find_or_write_pack(source, folder, SIDE)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == {"name": "photos", "fingerprint": source.fingerprint, "licence": "CC BY 4.0"}
    assert (manifest["resolution"], manifest["num_images"], manifest["enlarged"]) == (SIDE, 12, 0)
    assert manifest["skipped"] == []
    assert manifest["split"] == {"rule": "every 10th picture", "val_every": 10, "val": [0, 10]}
    assert manifest["sha256"] == hashlib.sha256((folder / "images.npy").read_bytes()).hexdigest()
    assert manifest["written_by"].startswith("latentfaces ")


def test_enlarged_pictures_are_counted_and_told(photos: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (3, 5):
        write_photo(photos / f"{number}.png", number, side=6)
    assert find_or_write_pack(Photos(photos), folder, SIDE).manifest["enlarged"] == 2
    assert "2 of 12 pictures are smaller than 8 pixels" in capsys.readouterr().out


def test_every_picture_is_either_learned_from_or_held_out(photos: Path, folder: Path) -> None:
    pack = find_or_write_pack(Photos(photos), folder, SIDE, val_every=5)
    assert pack.val_indices.tolist() == [0, 5, 10]
    assert pack.train_indices.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 11]


def test_every_tenth_picture_is_held_out() -> None:
    assert hold_out(None, 25, 10) == ("every 10th picture", [0, 10, 20])


def test_whole_ffhq_has_its_official_split() -> None:
    rule, held_out = hold_out(None, 70_000, 10)
    assert "official" in rule
    assert held_out == list(range(60_000, 70_000))


def test_nobody_is_both_learned_from_and_held_out() -> None:
    people = [str(number % 13) for number in range(60)]
    rule, held_out = hold_out(people, 60, 5)
    inside, outside = ({people[i] for i in range(60) if (i in held_out) is is_in} for is_in in (True, False))
    assert rule == "every 5th identity"
    assert inside == {"0", "5", "10"}  # of people sorted as numbers; sorted as text, others would be
    assert inside.isdisjoint(outside)
    assert inside | outside == set(people)


def test_people_of_the_listing_are_kept_apart_in_the_pack(photos: Path, folder: Path) -> None:
    rows = "".join(f"{number}.png,person{number // 3}\n" for number in range(12))
    (photos / "identity.csv").write_text("name,identity\n" + rows)
    pack = find_or_write_pack(Photos(photos), folder, SIDE, val_every=2)
    assert pack.val_indices.tolist() == [0, 1, 2, 6, 7, 8]


def test_bad_picture_stops_the_packing_and_leaves_nothing(photos: Path, folder: Path) -> None:
    (photos / "4.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"4\.png cannot be read .*data\.on_bad_image=skip"):
        find_or_write_pack(Photos(photos), folder, SIDE)
    assert list(folder.parent.iterdir()) == []


def test_skipped_picture_is_listed_and_the_others_keep_their_order(photos: Path, folder: Path) -> None:
    (photos / "4.png").write_bytes(b"not a picture")
    pack = find_or_write_pack(Photos(photos), folder, SIDE, on_bad_image="skip")
    (skipped,) = pack.manifest["skipped"]
    assert "4.png" in skipped
    assert pack.manifest["num_images"] == len(pack.images) == 11
    assert packed_names(pack) == [f"{number}.png" for number in range(12) if number != 4]
    assert pack.sha256 == hashlib.sha256((folder / "images.npy").read_bytes()).hexdigest()


def test_skipping_moves_the_people_along_with_their_pictures(photos: Path, folder: Path) -> None:
    rows = "".join(f"{number}.png,person{number // 3}\n" for number in range(12))
    (photos / "identity.csv").write_text("name,identity\n" + rows)
    (photos / "4.png").write_bytes(b"not a picture")
    pack = find_or_write_pack(Photos(photos), folder, SIDE, on_bad_image="skip", val_every=2)
    held_out = [pack.manifest["names"][i] for i in pack.val_indices]
    assert held_out == ["0.png", "1.png", "2.png", "6.png", "7.png", "8.png"]


def test_more_than_a_few_bad_pictures_are_too_many_to_skip(photos: Path, folder: Path) -> None:
    for number in (2, 4):
        (photos / f"{number}.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="2 of 12 pictures cannot be read"):
        find_or_write_pack(Photos(photos), folder, SIDE, on_bad_image="skip")
    assert list(folder.parent.iterdir()) == []


def test_second_call_reads_no_picture_and_writes_no_file(
    photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Photos, index: int, resolution: int) -> None:
        raise AssertionError("read again")

    first = find_or_write_pack(Photos(photos), folder, SIDE)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(Photos, "read", refuse)
    second = find_or_write_pack(Photos(photos), folder, SIDE)
    assert second.manifest == first.manifest
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_pack_of_other_pictures_is_refused_with_the_folder_to_delete(photos: Path, folder: Path) -> None:
    find_or_write_pack(Photos(photos), folder, SIDE)
    write_photo(photos / "12.png", 12)
    with pytest.raises(UserError, match=rf"{folder.name} was packed from photos .* delete that folder"):
        find_or_write_pack(Photos(photos), folder, SIDE)


def test_pack_with_another_split_is_refused_by_key(photos: Path, folder: Path) -> None:
    find_or_write_pack(Photos(photos), folder, SIDE, val_every=5)
    with pytest.raises(UserError, match=r"one in 5, not one in 4: .*data\.val_every"):
        find_or_write_pack(Photos(photos), folder, SIDE, val_every=4)


def test_pack_of_another_resolution_is_not_taken_for_this_one(photos: Path, folder: Path) -> None:
    find_or_write_pack(Photos(photos), folder, SIDE)
    with pytest.raises(UserError, match="8"):
        find_or_write_pack(Photos(photos), folder, 2 * SIDE)


def test_leftovers_of_a_killed_run_are_removed(photos: Path, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    (partial / "images.npy").write_bytes(b"half")
    (partial / "junk").write_bytes(b"junk")
    find_or_write_pack(Photos(photos), folder, SIDE)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "manifest.json"]


@pytest.mark.parametrize("manifest", [None, '{"format": 1, "num_'])
def test_folder_that_is_no_whole_pack_is_refused_by_name(photos: Path, folder: Path, manifest: str | None) -> None:
    folder.mkdir(parents=True)
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=rf"{folder.name} is not a whole pack"):
        find_or_write_pack(Photos(photos), folder, SIDE)


def test_pack_of_another_format_is_refused_by_number(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="pack of format 99"):
        open_pack(folder)


def test_disk_that_is_too_small_is_refused_before_anything_is_written(photos: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"packing photos needs [\d.]+ GB"):
        find_or_write_pack(Photos(photos), folder, 10_000_000)
    assert not folder.parent.exists()


def test_zip_packs_to_the_same_bytes_as_its_folder(photos: Path, folder: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in photos.iterdir():
            archive.write(path, path.name)
    (tmp_path / "photos.zip").write_bytes(buffer.getvalue())
    from_zip = find_or_write_pack(Photos(tmp_path / "photos.zip"), tmp_path / "zip-8", SIDE)
    assert from_zip.sha256 == find_or_write_pack(Photos(photos), folder, SIDE).sha256
