"""Folders and archives of photos: order, what counts as an image, what is left out and what is rejected."""

import hashlib
import io
import os
import struct
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.photo_files import photos, picture_bytes, rewrite, write_folder, write_zip
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentfaces.data.images import decode
from latentfaces.data.label_files import identities
from latentfaces.data.sources import BadImageError, DrawnFaces, Photos, natural_key
from latentfaces.errors import UserError

NAMES = ["1.png", "2.jpg", "10.png", "b/3.PNG", "b/12.webp"]


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "faces", photos(["10.png", "9.png", "face2.png", "face10.png", "1.png"]))
    assert Photos(folder).names == ["1.png", "9.png", "10.png", "face2.png", "face10.png"]


@pytest.mark.parametrize("name", ["1\u00b22.png", "\u00b2", "5\u00b25.png"])
def test_superscripts_are_no_numbers(name: str) -> None:
    assert natural_key(name) == natural_key(name)


def test_numbers_of_any_length_are_compared() -> None:
    names = ["b", "9" * 5000, "1" + "0" * 5000, "\u0662", "10", "01"]  # the fourth is an Arabic 2
    assert sorted(names, key=natural_key) == ["01", "\u0662", "10", "9" * 5000, "1" + "0" * 5000, "b"]


def test_names_of_equal_numbers_have_one_order(tmp_path: Path) -> None:
    forward = write_zip(tmp_path / "a.zip", photos(["1.png", "01.png"]))
    backward = write_zip(tmp_path / "b.zip", photos(["01.png", "1.png"]))
    assert Photos(forward).names == Photos(backward).names


def test_zip_and_folder_give_equal_names_and_pixels(tmp_path: Path) -> None:
    files = photos(NAMES)
    shuffled = {name: files[name] for name in reversed(NAMES)}
    folder = Photos(write_folder(tmp_path / "faces", files))
    archive = Photos(write_zip(tmp_path / "faces.zip", shuffled))
    assert folder.names == archive.names == ["1.png", "2.jpg", "10.png", "b/3.PNG", "b/12.webp"]
    assert folder.name == archive.name == "faces"
    assert folder.fingerprint == archive.fingerprint
    for index, name in enumerate(folder.names):
        expected = decode(files[name], 6)
        for picture in (folder.read(index, 6), archive.read(index, 6)):
            assert np.array_equal(picture.pixels, expected.pixels)
            assert picture.sha256 == expected.sha256 == hashlib.sha256(files[name]).hexdigest()[:32]


@pytest.mark.parametrize("as_zip", [False, True])
def test_files_that_are_left_out_are_counted_by_reason(tmp_path: Path, as_zip: bool) -> None:
    images = ["1.png", "2.jfif", "3.JPE"]
    hidden = ["._1.png", ".trash/1.png", "__MACOSX/1.png", "b/.2.jpg", "b/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg"]
    others = ["a.CR3", "b/b.cr3", "notes.txt", "LICENSE", "identity.csv", ".git/config", "@eaDir/1.cr3"]
    files = photos([*images, *hidden, "Thumbnails/1.jpg", *others])
    root = write_zip(tmp_path / "f.zip", files) if as_zip else write_folder(tmp_path / "f", files)
    source = Photos(root)
    assert source.names == images
    assert sorted(source.left_out()) == [
        "1 file(s) (.txt), such as notes.txt",
        "1 file(s) (no suffix), such as LICENSE",
        "2 file(s) (.cr3), such as a.CR3",
        "6 file(s) (hidden or in a system folder), such as ._1.png",
    ]


@pytest.mark.parametrize("as_zip", [False, True])
def test_runs_and_samples_below_the_root_are_left_out(tmp_path: Path, as_zip: bool) -> None:
    image, text = Image.new("RGB", (8, 8)), PngInfo()
    text.add_itxt("latentfaces", "{}")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    own = [".hydra/config.yaml", "images/step_1.png"]
    files = photos(["1.png", "grids/grid.png", "grids/2.png", *(f"outputs/vae/a/{name}" for name in own), "mine/0.png"])
    files["mine/grid.png"] = buffer.getvalue()
    signature = struct.pack(">I4s5000sI", 5000, b"caBX", b"", 0)  # of C2PA, before the text
    files["signed/grid.png"] = buffer.getvalue()[:33] + signature + buffer.getvalue()[33:]
    root = write_zip(tmp_path / "f.zip", files) if as_zip else write_folder(tmp_path / "f", files)
    source = Photos(root)
    assert source.names == ["1.png", "grids/2.png", "grids/grid.png"]
    assert source.left_out() == ["4 file(s) (written by latentfaces), such as mine/0.png"]
    if not as_zip:
        assert Photos(root / "mine").names == ["0.png"]  # without the grid


def test_links_that_are_not_followed_are_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", photos(["1.png"]))
    write_folder(tmp_path / "other", photos(["2.png", "3.png"]))
    (folder / "2.png").symlink_to(tmp_path / "other" / "2.png")
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    source = Photos(folder)
    assert source.names == ["1.png", "2.png"]
    assert sorted(source.left_out()) == [
        "1 file(s) (link to a folder), such as linked",
        "2 file(s) (dangling link), such as gone.png",
    ]


def test_of_zip_members_of_one_name_the_last_is_read_and_the_others_are_counted(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "f.zip", photos(["1.png"]))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("1.png", picture_bytes(7))
    source = Photos(path)
    assert source.left_out() == ["1 file(s) (same name as a later zip member), such as 1.png"]
    assert np.array_equal(source.read(0, 6).pixels, decode(picture_bytes(7), 6).pixels)


def test_names_in_a_zip_of_macos_are_utf8_without_a_flag(tmp_path: Path) -> None:
    name = "Jose\u0301 1.png"
    path = write_zip(tmp_path / "f.zip", photos([name, "2.png"]))
    rewrite(path, name, {b"PK\3\4": 6, b"PK\1\2": 8}, "<H", 0)
    source = Photos(path)
    assert source.names == ["2.png", name]
    assert np.array_equal(source.read(1, 6).pixels, decode(picture_bytes(0), 6).pixels)


def test_system_folder_without_access_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "f", photos(["1.png", "lost+found/2.png", "b/3.png"]))
    scandir = os.scandir

    def refuse(path: str, closed: str = "lost+found") -> object:
        if Path(path).name == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert Photos(folder).names == ["1.png", "b/3.png"]
    monkeypatch.setattr(os, "scandir", partial(refuse, closed="b"))
    with pytest.raises(PermissionError, match="/b"):
        Photos(folder).names  # noqa: B018


def test_folder_in_a_hidden_place_is_read_all_the_same(tmp_path: Path) -> None:
    assert Photos(write_folder(tmp_path / ".cache" / "faces", photos(["1.png"]))).names == ["1.png"]


@pytest.mark.parametrize("as_zip", [False, True])
def test_folder_named_like_a_picture_is_no_picture(tmp_path: Path, as_zip: bool) -> None:
    files = photos(["1.png", "album.png/2.png"])
    root = write_zip(tmp_path / "f.zip", {"album.png/": b""} | files) if as_zip else write_folder(tmp_path / "f", files)
    assert Photos(root).names == ["1.png", "album.png/2.png"]


@pytest.mark.parametrize("as_zip", [False, True])
def test_no_pictures_are_refused_naming_the_key_and_the_place(tmp_path: Path, as_zip: bool) -> None:
    files = {"readme.txt": b"no faces here"}
    root = write_zip(tmp_path / "none.zip", files) if as_zip else write_folder(tmp_path / "none", files)
    with pytest.raises(UserError, match=rf"data\.root=.*{root.name}"):
        Photos(root).names  # noqa: B018


@pytest.mark.parametrize("as_zip", [False, True])
def test_the_same_faces_in_two_sizes_are_refused(tmp_path: Path, as_zip: bool) -> None:
    files = photos(["images1024x1024/00000/00000.png", "thumbnails128x128/00000/00000.png"])
    root = write_zip(tmp_path / "f.zip", files) if as_zip else write_folder(tmp_path / "f", files)
    with pytest.raises(UserError, match=r"images1024x1024 and thumbnails128x128.*Use one of them"):
        Photos(root).names  # noqa: B018
    if not as_zip:
        assert Photos(root / "thumbnails128x128").names == ["00000/00000.png"]


@pytest.mark.parametrize("as_zip", [False, True])
def test_damaged_picture_is_named(tmp_path: Path, as_zip: bool) -> None:
    files = photos(["1.png", "b/2.png"])
    files["b/2.png"] = files["b/2.png"][:60]
    root = write_zip(tmp_path / "f.zip", files) if as_zip else write_folder(tmp_path / "f", files)
    with pytest.raises(BadImageError, match=r"b/2\.png cannot be read"):
        Photos(root).read(1, 6)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_picture_damaged_inside_the_zip_is_named(tmp_path: Path, compression: int) -> None:
    path = write_zip(tmp_path / "f.zip", photos(["1.bmp", "2.bmp"]), compression)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("2.bmp").header_offset + 30 + len("2.bmp")
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(BadImageError, match=r"2\.bmp cannot be read"):
        Photos(path).read(1, 6)


def test_listing_that_declares_too_many_bytes_is_refused_by_name(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "f.zip", {**photos(["1.png"]), "identity.csv": b"name,identity\n1.png,ann\n"})
    rewrite(path, "identity.csv", {b"PK\1\2": 24}, "<I", 2**28 + 1)
    with pytest.raises(UserError, match=r"f\.zip/identity\.csv cannot be read .unpacks to over"):
        identities(Photos(path))


UNREADABLE = {
    "encrypted": ({b"PK\3\4": 6, b"PK\1\2": 8}, 1, "is encrypted.*; write or fetch the"),
    "Deflate64": ({b"PK\3\4": 8, b"PK\1\2": 10}, 9, r"compression method is not supported\); write or fetch"),
    "damaged": ({b"PK\1\2": 16}, 1, r"Bad CRC-32.*fetch the \.zip"),
}


@pytest.mark.parametrize(("at", "value", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_member_that_cannot_be_read_is_named(tmp_path: Path, at: dict[bytes, int], value: int, message: str) -> None:
    listing = {"b/identity.csv": b"name,identity\n1.png,ann\n2.png,bob\n"}
    path = write_zip(tmp_path / "f.zip", {**photos(["b/1.png", "b/2.png"]), **listing})
    rewrite(path, "b/2.png", at, "<H", value)
    assert Photos(path).read(0, 6).pixels.shape == (3, 6, 6)
    with pytest.raises(BadImageError, match=rf"f\.zip/b/2\.png cannot be read .*{message}"):
        Photos(path).read(1, 6)
    assert identities(Photos(path)) == ["ann", "bob"]
    rewrite(path, "b/identity.csv", at, "<H", value)
    with pytest.raises(UserError, match=rf"f\.zip/b/identity\.csv cannot be read .*{message}"):
        identities(Photos(path))


@pytest.mark.parametrize("as_zip", [False, True])
def test_picture_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_zip: bool) -> None:
    files = photos(["1.png"])
    root = write_zip(tmp_path / "f.zip", files) if as_zip else write_folder(tmp_path / "f", files)
    monkeypatch.setattr("latentfaces.data.images.MAX_PIXELS", 143)
    with pytest.raises(BadImageError, match=r"1\.png cannot be read \(12x12 pixels are more than 143\)"):
        Photos(root).read(0, 6)


def test_filter_is_handed_on(tmp_path: Path) -> None:
    files = photos(["1.png"])
    source = Photos(write_folder(tmp_path / "f", files))
    assert np.array_equal(source.read(0, 5, "bicubic").pixels, decode(files["1.png"], 5, "bicubic").pixels)


def test_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "faces", photos(["1.png", "2.png"]))
    before = Photos(folder).fingerprint
    assert Photos(folder).fingerprint == before
    write_folder(folder, {"2.png": picture_bytes(7, "x.jpg")})
    replaced = Photos(folder).fingerprint
    write_folder(folder, photos(["3.png"]))
    assert len({before, replaced, Photos(folder).fingerprint}) == 3


def test_people_are_unknown_without_a_listing(tmp_path: Path) -> None:
    assert identities(Photos(write_folder(tmp_path / "f", photos(["1.png"])))) is None
    assert identities(Photos(write_zip(tmp_path / "f.zip", photos(["1.png"])))) is None


@pytest.mark.parametrize("below", ["", "photos/"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_people_are_read_from_the_listing_beside_the_pictures(tmp_path: Path, as_zip: bool, below: str) -> None:
    files = photos([f"{below}1.png", f"{below}2.png", f"{below}10.png"])
    files[f"{below}identity.csv"] = b"name,identity\n10.png,ann\n1.png,bob\n2.png,ann\n"
    root = write_zip(tmp_path / "f.zip", files) if as_zip else write_folder(tmp_path / "f", files)
    assert identities(Photos(root)) == ["bob", "ann", "ann"]


def test_people_are_read_from_one_listing_above_all_folders(tmp_path: Path) -> None:
    files = photos(["ann/1.png", "ann/2.png", "bob/1.png"])
    files["identity.csv"] = b"name,identity\nann/1.png,ann\nann/2.png,ann\nbob/1.png,bob\n"
    assert identities(Photos(write_folder(tmp_path / "f", files))) == ["ann", "ann", "bob"]


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_listing_of_people_in_a_folder_without_the_first_image_is_rejected(tmp_path: Path, as_zip: bool) -> None:
    files = {**photos(["a/1.png", "b/1.png"]), "b/identity.csv": b"name,identity\n1.png,ann\n"}
    root = write_zip(tmp_path / "f.zip", files) if as_zip else write_folder(tmp_path / "f", files)
    with pytest.raises(UserError, match=r"b/identity\.csv in .* is not above all images\. Move it there"):
        identities(Photos(root))


def test_people_are_read_from_a_listing_with_composed_accents(tmp_path: Path) -> None:
    files = photos(["Jose\u0301.png"])  # as macOS writes it
    files["identity.csv"] = "name,identity\nJos\u00e9.png,ann\n".encode()
    assert identities(Photos(write_folder(tmp_path / "f", files))) == ["ann"]


@pytest.mark.parametrize("prefix", ["set\\", "./", ""])
def test_people_are_read_from_a_zip_of_another_program(tmp_path: Path, prefix: str) -> None:
    listing = b"name,identity\nb\\1.png,ann\nb\\2.png,bob\n"
    files = {f"{prefix}b{prefix[-1:] or '/'}{name}": data for name, data in photos(["1.png", "2.png"]).items()}
    path = write_zip(tmp_path / "f.zip", {"b\\": b"", **files, f"{prefix}identity.csv": listing})
    source = Photos(path)
    assert source.left_out() == []
    assert source.names == ([f"set/b/{n}.png" for n in (1, 2)] if "set" in prefix else ["b/1.png", "b/2.png"])
    assert identities(source) == ["ann", "bob"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"1.png,ann\n2.png\n", "line 3: 1 cells, but the header has 2"),
        (b"1.png,ann\n2.png,\n", r"line 3 needs one identity for 2\.png"),
        (b"1.png,ann\n2.png,bob\n1.png,bob\n", r"line 4 needs one identity for 1\.png"),
        (b"1.png,ann\n2.png," + b"x" * 140_000, r"line \d: field larger"),
    ],
)
def test_row_of_the_listing_without_one_identity_is_named(tmp_path: Path, rows: bytes, message: str) -> None:
    files = {**photos(["1.png", "2.png"]), "identity.csv": b"name,identity\n" + rows}
    with pytest.raises(UserError, match=rf"^identity\.csv in .*f, {message}"):
        identities(Photos(write_folder(tmp_path / "f", files)))


def test_listing_in_another_encoding_is_named(tmp_path: Path) -> None:
    listing = "name,identity\n1.png,Zo\u00eb\n".encode("latin-1")
    folder = write_folder(tmp_path / "f", {**photos(["1.png"]), "identity.csv": listing})
    with pytest.raises(UserError, match=r"identity\.csv in .* is not in UTF-8"):
        identities(Photos(folder))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_utf8_is_packed_as_any_other(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", photos(["1.png"]))
    (folder / "1.png").rename(folder / os.fsdecode(b"Jos\xe9.png"))
    assert len(Photos(folder).fingerprint) == 64


@pytest.mark.parametrize("comma", [",", ";"])
def test_listing_saved_by_a_spreadsheet_is_read(tmp_path: Path, comma: str) -> None:
    text = "name,identity\r\n1.png,Zo\u00eb\r\n,\r\n".replace(",", comma)
    listing = text.encode("utf-8-sig")  # spreadsheets begin UTF-8 with a mark
    folder = write_folder(tmp_path / "f", {**photos(["1.png"]), "identity.csv": listing})
    assert identities(Photos(folder)) == ["Zo\u00eb"]


def test_person_missing_from_the_listing_is_refused_naming_the_picture(tmp_path: Path) -> None:
    listing = b"name,identity\n1.png,ann\n"
    folder = write_folder(tmp_path / "f", {**photos(["1.png", "2.png"]), "identity.csv": listing})
    with pytest.raises(UserError, match=r"identity\.csv in .* does not name 2\.png"):
        identities(Photos(folder))


def test_listing_with_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    listing = b"file,person\n1.png,ann\n"
    folder = write_folder(tmp_path / "f", {**photos(["1.png"]), "identity.csv": listing})
    with pytest.raises(UserError, match=r"identity\.csv"):
        identities(Photos(folder))


def test_drawn_faces_are_numbered_and_decided_by_their_index() -> None:
    first, more = DrawnFaces(3), DrawnFaces(4)
    assert first.names == more.names[:3] == ["drawn-000000", "drawn-000001", "drawn-000002"]
    assert np.array_equal(first.read(2, 16).pixels, more.read(2, 16).pixels)
    assert (first.name, first.fingerprint) != (more.name, more.fingerprint)
