"""Packing: pixels and manifest, damaged images, settings, and interrupted packings."""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentfaces.data.images import FilterName, Picture, decode, digest
from latentfaces.data.pack import Pack, open_pack
from latentfaces.data.packing import find_or_write_pack, num_threads
from latentfaces.data.sources import BadImageError, DrawnFaces, Photos
from latentfaces.errors import UserError
from latentfaces.files import atomic_write

SIDE = 8
WritePhoto = Callable[..., None]


class Numbered(DrawnFaces):
    """Images whose pixels are their index. Records what is read, stops at one, fails at some.

    Args:
        num_images: how many.
        stop_at: reading is interrupted here, once all before it are read.
        bad: these cannot be read.
    """

    def __init__(self, num_images: int, stop_at: int | None = None, bad: tuple[int, ...] = ()) -> None:
        super().__init__(num_images)
        self.stop_at, self.bad = stop_at, bad
        self.read_indices: list[int] = []
        self.lock = threading.Lock()

    def read(self, index: int, resolution: int, resize_filter: FilterName = "auto") -> Picture:
        if self.stop_at is not None and index >= self.stop_at:
            raise KeyboardInterrupt
        with self.lock:
            self.read_indices.append(index)
        if index in self.bad:
            raise BadImageError(f"{self.names[index]} cannot be read")
        pixels = np.full((3, resolution, resolution), index % 251, np.uint8)
        return Picture(pixels, False, digest(pixels.tobytes()))


def packed_names(pack: Pack) -> list[str]:
    """Return the names in the manifest, after a check of each image's pixels and hash."""
    names: list[str] = pack.manifest["names"]
    root = Path(pack.folder).parents[1] / "photos"
    for pixels, name, sha256 in zip(pack.images, names, pack.manifest["sha256_of_sources"], strict=True):
        data = (root / name).read_bytes()
        assert np.array_equal(pixels, decode(data, SIDE).pixels), name
        assert sha256 == hashlib.sha256(data).hexdigest()[:32], name
    return names


def assert_same_pack(folder: Path, other: Path) -> None:
    """Check that two folders hold the same files, byte for byte."""
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "manifest.json"]
    assert json.loads((folder / "manifest.json").read_text()) == json.loads((other / "manifest.json").read_text())
    assert (folder / "images.npy").read_bytes() == (other / "images.npy").read_bytes()
    assert open_pack(folder).sha256 == hashlib.sha256((folder / "images.npy").read_bytes()).hexdigest()


def partial_of(folder: Path) -> Path:
    """Return the folder of an incomplete packing into `folder`."""
    return folder.with_name(folder.name + ".partial")


def interrupted(num_images: int, folder: Path, stop_at: int, **settings: Any) -> list[int]:
    """Pack numbered images until one interrupts it. Return the indices that were read."""
    source = Numbered(num_images, stop_at)
    with pytest.raises(KeyboardInterrupt):
        find_or_write_pack(source, folder, SIDE, **settings)
    return source.read_indices


def test_pixels_are_those_of_decode_in_natural_order(photos: Path, folder: Path) -> None:
    pack = find_or_write_pack(Photos(photos), folder, SIDE)
    assert pack.images.shape == (12, 3, SIDE, SIDE)
    assert pack.images.dtype == np.uint8
    assert packed_names(pack) == [f"{number}.png" for number in range(12)]


def test_manifest_says_what_the_pixels_are(photos: Path, folder: Path) -> None:
    source = Photos(photos, licence="CC BY 4.0")
    find_or_write_pack(source, folder, SIDE)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == {"name": "photos", "fingerprint": source.fingerprint, "licence": "CC BY 4.0"}
    assert manifest["settings"] == {"resolution": SIDE, "val_every": 10, "filter": "auto"}
    assert (manifest["resolution"], manifest["num_images"], manifest["enlarged"]) == (SIDE, 12, 0)
    assert manifest["skipped"] == []
    assert manifest["split"] == {"rule": "one image in 10", "val": [0, 10], "tuning": [0]}
    assert manifest["sha256"] == hashlib.sha256((folder / "images.npy").read_bytes()).hexdigest()
    assert manifest["written_by"].startswith("latentfaces ")


def test_enlarged_pictures_are_counted_and_told(
    photos: Path, folder: Path, write_photo: WritePhoto, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (3, 5):
        write_photo(photos / f"{number}.png", number, side=6)
    assert find_or_write_pack(Photos(photos), folder, SIDE).manifest["enlarged"] == 2
    assert "2 of 12 images are smaller than 8 pixels" in capsys.readouterr().out


def test_copies_of_training_images_that_are_held_out_are_reported(
    photos: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    find_or_write_pack(Photos(photos), folder, SIDE)
    assert "identical" not in capsys.readouterr().out
    shutil.copy(photos / "10.png", photos / "4.png")
    shutil.copy(photos / "3.png", photos / "5.png")  # both are training images
    find_or_write_pack(Photos(photos), folder.with_name("copies-8"), SIDE)
    assert "1 held-out images are identical to training images, such as 10.png and 4.png" in capsys.readouterr().out


def test_packing_uses_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 7, 9}, raising=False)
    assert num_threads() == 3


def test_people_of_the_listing_are_kept_apart_in_the_pack(photos: Path, folder: Path) -> None:
    rows = "".join(f"{number}.png,person{number // 3}\n" for number in range(12))
    (photos / "identity.csv").write_text("name,identity\n" + rows)
    pack = find_or_write_pack(Photos(photos), folder, SIDE, val_every=2)
    assert pack.val_indices.tolist() == [0, 1, 2, 6, 7, 8]
    assert open_pack(folder).tuning_indices.tolist() == [0, 1, 2]
    assert open_pack(folder).test_indices.tolist() == [6, 7, 8]


def test_damaged_listing_of_people_is_rejected_before_anything_is_packed(photos: Path, folder: Path) -> None:
    (photos / "identity.csv").write_text("name,identity\n0.png,ann\n")
    with pytest.raises(UserError, match=r"does not name 1\.png"):
        find_or_write_pack(Photos(photos), folder, SIDE)
    assert not folder.parent.exists()


def test_zip_packs_to_the_same_bytes_as_its_folder(photos: Path, folder: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in photos.iterdir():
            archive.write(path, path.name)
    (tmp_path / "photos.zip").write_bytes(buffer.getvalue())
    find_or_write_pack(Photos(tmp_path / "photos.zip"), tmp_path / "zip-8", SIDE)
    find_or_write_pack(Photos(photos), folder, SIDE)
    assert_same_pack(tmp_path / "zip-8", folder)


def test_second_call_reads_no_picture_and_writes_no_file(
    photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("read again")

    first = find_or_write_pack(Photos(photos), folder, SIDE)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(Photos, "read", refuse)
    second = find_or_write_pack(Photos(photos), folder, SIDE)
    assert second.manifest == first.manifest
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_disk_that_is_too_small_is_refused_before_anything_is_written(photos: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"packing photos needs [\d.]+ GB"):
        find_or_write_pack(Photos(photos), folder, 10_000_000)
    assert not folder.parent.exists()


# Damaged pictures


def test_bad_picture_stops_the_packing_and_leaves_no_pack(photos: Path, folder: Path) -> None:
    (photos / "4.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"4\.png cannot be read .*data\.on_bad_image=skip"):
        find_or_write_pack(Photos(photos), folder, SIDE)
    assert list(folder.parent.glob("[!.]*")) == [partial_of(folder)]


def test_skipping_after_a_stop_reads_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    first, second = Numbered(20, bad=(11,)), Numbered(20, bad=(11,))
    with pytest.raises(UserError, match="drawn-000011"):
        find_or_write_pack(first, folder, SIDE)
    find_or_write_pack(second, folder, SIDE, on_bad_image="skip")
    assert sorted(first.read_indices + second.read_indices) == [*range(12), *range(11, 20)]
    find_or_write_pack(Numbered(20, bad=(11,)), tmp_path / "straight", SIDE, on_bad_image="skip")
    assert_same_pack(folder, tmp_path / "straight")


def test_a_folder_without_a_readable_image_gives_no_pack(folder: Path) -> None:
    with pytest.raises(UserError, match=r"No image of .* can be read, for example: "):
        find_or_write_pack(Numbered(1, bad=(0,)), folder, SIDE, on_bad_image="skip")
    assert not folder.exists()


def test_skipped_picture_is_listed_and_the_others_keep_their_order(photos: Path, folder: Path) -> None:
    (photos / "4.png").write_bytes(b"not a picture")
    pack = find_or_write_pack(Photos(photos), folder, SIDE, on_bad_image="skip", val_every=5)
    (skipped,) = pack.manifest["skipped"]
    assert "4.png" in skipped
    assert pack.manifest["num_images"] == len(pack.images) == 11
    assert packed_names(pack) == [f"{number}.png" for number in range(12) if number != 4]
    assert pack.sha256 == hashlib.sha256((folder / "images.npy").read_bytes()).hexdigest()
    assert [pack.manifest["names"][i] for i in pack.val_indices] == ["0.png", "6.png", "11.png"]


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
    with pytest.raises(UserError, match="2 of 12 images cannot be read"):
        find_or_write_pack(Photos(photos), folder, SIDE, on_bad_image="skip")
    assert not folder.exists()


def test_one_in_a_hundred_may_be_skipped(folder: Path) -> None:
    pack = find_or_write_pack(Numbered(300, bad=(7, 8, 299)), folder, SIDE, on_bad_image="skip")
    kept = [index for index in range(300) if index not in (7, 8, 299)]
    assert pack.images[:][:, 0, 0, 0].tolist() == [index % 251 for index in kept]
    assert pack.manifest["names"] == [f"drawn-{index:06d}" for index in kept]
    assert pack.manifest["skipped"] == [f"drawn-{index:06d} cannot be read" for index in (7, 8, 299)]


def test_more_than_one_in_a_hundred_may_not(folder: Path) -> None:
    with pytest.raises(UserError, match="4 of 300 images cannot be read"):
        find_or_write_pack(Numbered(300, bad=(7, 8, 9, 299)), folder, SIDE, on_bad_image="skip")
    assert not folder.exists()


# Settings


def test_pack_of_other_pictures_is_refused_with_the_folder_to_delete(
    photos: Path, folder: Path, write_photo: WritePhoto
) -> None:
    find_or_write_pack(Photos(photos), folder, SIDE)
    write_photo(photos / "12.png", 12)
    with pytest.raises(
        UserError, match=rf"{folder.name} was packed from other images than those in photos .*delete the pack"
    ):
        find_or_write_pack(Photos(photos), folder, SIDE)


@pytest.mark.parametrize("zipped", [False, True])
def test_pack_of_other_images_with_the_same_names_and_sizes_is_rejected(
    photos: Path, folder: Path, write_photo: WritePhoto, zipped: bool
) -> None:
    def source() -> Photos:
        return Photos(shutil.make_archive(str(photos), "zip", photos) if zipped else photos)

    for number in range(60):
        write_photo(photos / f"{number}.bmp", number)
    find_or_write_pack(source(), folder, SIDE)
    for number in range(60):
        path = photos / f"{number}.bmp"
        time, size = path.stat().st_mtime_ns, path.stat().st_size
        write_photo(path, number + 60)
        os.utime(path, ns=(time, time))  # as a copy that keeps its time of modification
        assert path.stat().st_size == size
    with pytest.raises(UserError, match=rf"{folder.name} was packed from other images .*\d\.bmp has changed"):
        find_or_write_pack(source(), folder, SIDE)


def test_other_terms_than_those_of_the_pack_are_refused(photos: Path, folder: Path) -> None:
    find_or_write_pack(Photos(photos, licence="CC BY 4.0"), folder, SIDE)
    find_or_write_pack(Photos(photos), folder, SIDE)
    with pytest.raises(UserError, match=r"packed with licence=CC BY 4\.0, not CC0\. Correct it in .*manifest\.json"):
        find_or_write_pack(Photos(photos, licence="CC0"), folder, SIDE)


@pytest.mark.parametrize(
    ("resolution", "val_every", "resize_filter", "message"),
    [
        (SIDE, 4, "box", r"data\.val_every=5, not 4"),
        (2 * SIDE, 5, "box", r"data\.resolution=8, not 16"),
        (SIDE, 5, "auto", r"data\.filter=box, not auto"),
    ],
)
def test_pack_of_another_setting_is_refused_by_its_key_and_both_values(
    photos: Path, folder: Path, resolution: int, val_every: int, resize_filter: FilterName, message: str
) -> None:
    find_or_write_pack(Photos(photos), folder, SIDE, "fail", 5, "box")
    with pytest.raises(UserError, match=rf"{folder.name} was packed with {message}\..*leave data\.\w+ as it was"):
        find_or_write_pack(Photos(photos), folder, resolution, "fail", val_every, resize_filter)


def test_chosen_filter_makes_the_pixels(photos: Path, folder: Path) -> None:
    pack = find_or_write_pack(Photos(photos), folder, 5, resize_filter="bilinear")
    data = (photos / "7.png").read_bytes()
    assert np.array_equal(pack.images[7], decode(data, 5, "bilinear").pixels)
    assert not np.array_equal(pack.images[7], decode(data, 5, "lanczos").pixels)


# Packings that were cut


@pytest.mark.parametrize("stop_at", [0, 1, 17, 39])
def test_interrupted_packing_goes_on_with_what_is_pending(folder: Path, tmp_path: Path, stop_at: int) -> None:
    before = interrupted(40, folder, stop_at)
    source = Numbered(40)
    find_or_write_pack(source, folder, SIDE)
    assert sorted(before) == list(range(stop_at))
    assert sorted(source.read_indices) == list(range(stop_at, 40))
    find_or_write_pack(Numbered(40), tmp_path / "straight", SIDE)
    assert_same_pack(folder, tmp_path / "straight")


def test_packing_interrupted_twice_goes_on_twice(folder: Path, tmp_path: Path) -> None:
    before = interrupted(40, folder, 12) + interrupted(40, folder, 31)
    source = Numbered(40)
    find_or_write_pack(source, folder, SIDE)
    assert sorted(before + source.read_indices) == list(range(40))
    find_or_write_pack(Numbered(40), tmp_path / "straight", SIDE)
    assert_same_pack(folder, tmp_path / "straight")


def test_packing_that_filled_the_disk_is_resumed_without_a_hole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, pwrite = 17 * 3 * SIDE**2 + 100, os.pwrite

    def of_full_disk(file: int, data: memoryview, offset: int) -> int:
        nonlocal left
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = pwrite(file, data[:left], offset)
        left -= written
        return written

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", of_full_disk)
        with pytest.raises(OSError, match="No space left"):
            find_or_write_pack(Numbered(40), folder, SIDE)
    assert not folder.exists()
    find_or_write_pack(Numbered(40), folder, SIDE)
    find_or_write_pack(Numbered(40), tmp_path / "straight", SIDE)
    assert_same_pack(folder, tmp_path / "straight")


@pytest.mark.parametrize("bad", [(11,), ()])
def test_disk_that_is_full_at_the_manifest_costs_no_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...]
) -> None:
    """The second run also finds the image that the first one left out, where it was repaired meanwhile."""

    def full(path: Path) -> Any:
        return atomic_write(Path("/dev/full/manifest.json") if path.name == "manifest.json" else path)

    with monkeypatch.context() as patched:
        patched.setattr("latentfaces.data.packing.atomic_write", full)
        with pytest.raises(OSError, match="/dev/full"):
            find_or_write_pack(Numbered(300, bad=(11,)), folder, SIDE, "skip")
    source = Numbered(300, bad=bad)
    find_or_write_pack(source, folder, SIDE, "skip")
    assert source.read_indices == [11]
    find_or_write_pack(Numbered(300, bad=bad), tmp_path / "straight", SIDE, "skip")
    assert_same_pack(folder, tmp_path / "straight")


def test_cut_packing_is_no_pack(folder: Path) -> None:
    interrupted(40, folder, 17)
    assert not folder.exists()
    with pytest.raises(UserError, match="is not a complete pack"):
        open_pack(partial_of(folder))


def test_cut_packing_of_other_pictures_is_thrown_away(folder: Path, tmp_path: Path) -> None:
    interrupted(40, folder, 17)
    source = Numbered(41)
    find_or_write_pack(source, folder, SIDE)
    assert sorted(source.read_indices) == list(range(41))
    find_or_write_pack(Numbered(41), tmp_path / "straight", SIDE)
    assert_same_pack(folder, tmp_path / "straight")
    assert not partial_of(folder).exists()


@pytest.mark.parametrize("settings", [{"val_every": 3}, {"resize_filter": "box"}])
def test_cut_packing_of_other_settings_is_thrown_away(folder: Path, settings: dict[str, Any]) -> None:
    interrupted(40, folder, 17)
    source = Numbered(40)
    pack = find_or_write_pack(source, folder, SIDE, **settings)
    assert sorted(source.read_indices) == list(range(40))
    assert pack.images[:][:, 0, 0, 0].tolist() == list(range(40))


def test_leftovers_that_are_no_packing_are_removed(photos: Path, folder: Path) -> None:
    partial_of(folder).mkdir(parents=True)
    (partial_of(folder) / "images.npy").write_bytes(b"half")
    (partial_of(folder) / "junk").write_bytes(b"junk")
    find_or_write_pack(Photos(photos), folder, SIDE)
    assert [path.name for path in folder.parent.glob("[!.]*")] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "manifest.json"]


@pytest.mark.parametrize(
    ("step", "call"),
    [("write_text", 1), *(("unlink", call) for call in (1, 2, 3, 4)), *(("replace", call) for call in (1, 2, 3, 4))],
)
def test_packing_cut_between_two_files_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    original, calls = getattr(Path, step), itertools.count(1)

    def stop(path: Path, *arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(path, *arguments, **options)

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(Path, step, stop)
        find_or_write_pack(Numbered(40), folder, SIDE)
    find_or_write_pack(Numbered(40), folder, SIDE)
    find_or_write_pack(Numbered(40), tmp_path / "straight", SIDE)
    assert_same_pack(folder, tmp_path / "straight")


def test_packing_cut_after_the_gaps_were_closed_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr("latentfaces.data.packing.report_copies", stop)
        find_or_write_pack(Numbered(20, bad=(11,)), folder, SIDE, "skip")
    find_or_write_pack(Numbered(20, bad=(11,)), folder, SIDE, "skip")
    find_or_write_pack(Numbered(20, bad=(11,)), tmp_path / "straight", SIDE, "skip")
    assert_same_pack(folder, tmp_path / "straight")


def test_packing_cut_while_the_gaps_are_closed_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(np.lib.format, "write_array_header_1_0", stop)
        find_or_write_pack(Numbered(20, bad=(19,)), folder, SIDE, "skip")
    find_or_write_pack(Numbered(20, bad=(19,)), folder, SIDE, "skip")
    find_or_write_pack(Numbered(20, bad=(19,)), tmp_path / "straight", SIDE, "skip")
    assert_same_pack(folder, tmp_path / "straight")


def test_jobs_that_need_the_same_pack_at_the_same_time_make_it_once(tmp_path: Path) -> None:
    start = threading.Barrier(3)

    def pack(_: int) -> int:
        start.wait()
        return len(find_or_write_pack(DrawnFaces(300), tmp_path / "faces-32", 32).images)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(pack, range(3))) == [300] * 3
    assert not (tmp_path / "faces-32.partial").exists()
