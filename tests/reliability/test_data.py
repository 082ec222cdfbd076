"""Damaged images, packs, caches and disks (cases 7 to 19)."""

import io
import json
import os
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, refused
from helpers.forked import Forker
from helpers.kaggle_stand_in import MODULES, Kaggle, not_known, send_half, send_truncated
from helpers.photo_files import photos, picture_bytes, rewrite, tree, write_folder, write_zip
from PIL import Image

from latentfaces.cli import prepare
from latentfaces.data import open_pack
from latentfaces.data.images import decode
from latentfaces.data.packing import find_or_write_pack
from latentfaces.data.sources import DrawnFaces
from latentfaces.data.synthetic import draw_face

FFHQ = ["model=vae", "model/autoencoder=tiny", "data=ffhq"]
ALBUM = [f"{number}.png" for number in range(12)]
Prepare = Callable[..., str]


@pytest.fixture
def pack(workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    """`pack("photos", "--verify", ...)` at 6 pixels, from the command line; what it prints, "error: ..." included."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments), "--resolution", "6"])
        capsys.readouterr()
        status = None
        try:
            prepare.main()
        except SystemExit as stop:
            status = stop.code
        printed, said = capsys.readouterr()
        assert (status, said.startswith("error: ")) in ((None, False), (2, True))
        return said or printed

    return run


def disk_with(num_bytes: float) -> Callable[[object], SimpleNamespace]:
    return lambda path: SimpleNamespace(free=num_bytes)


def test_case_07_without_kaggles_credentials_or_client_the_ways_to_ffhq_are_told(
    kaggle: Kaggle, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.authenticate = not_known
    said = refused("train.py", *FFHQ)
    assert "KAGGLE_API_TOKEN" in said
    assert "https://www.kaggle.com/datasets/" in said
    assert "data.root=" in said
    assert "Authentication" not in capsys.readouterr().out  # the client's page of advice
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'latentfaces[data]'" in refused("train.py", *FFHQ)
    assert kaggle.calls == []


def test_case_08_a_download_that_lost_the_network_goes_on_and_never_bears_the_name_before_it_is_whole(
    kaggle: Kaggle, pack: Prepare
) -> None:
    kaggle.send = send_half
    said = pack("ffhq")
    assert "Try again" in said
    assert "data.root=" in said
    assert not Path("data/ffhq.zip").exists()
    found: list[int] = []

    def go_on(folder: Path) -> None:
        (half,) = folder.iterdir()
        found.append(half.stat().st_size)
        write_zip(half, photos(ALBUM))

    kaggle.send = go_on
    assert "12 images" in pack("ffhq")
    assert found[0] > 0
    assert sorted(path.name for path in Path("data").glob("[!.]*")) == ["ffhq-6", "ffhq.zip"]


def test_case_09_a_zip_that_is_cut_or_has_a_flipped_bit_is_told_with_its_size_and_leaves_nothing_half(
    pack: Prepare, kaggle: Kaggle
) -> None:
    path = write_zip(Path("photos.zip"), {name: picture_bytes(n, "x.bmp") for n, name in enumerate(ALBUM)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    said = pack(path)
    assert (
        f"photos.zip ({len(whole) - 200:,} bytes) is not a readable .zip (File is not a zip file). Fetch it again."
        in said
    )
    assert tree(Path()) == {"photos.zip": path.read_bytes()}

    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        place = archive.getinfo("7.png").header_offset + 200
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    said = pack(path)
    assert "photos.zip/7.png cannot be read (Bad CRC-32" in said
    assert f"fetch the .zip ({len(whole):,} bytes) again" in said
    assert not Path("data/photos-6").exists()
    assert not list(Path().rglob("*.bmp"))

    kaggle.send = send_truncated  # the client thinks it is done
    assert "contains no complete .zip. Delete it and try again" in pack("ffhq")
    assert not Path("data/ffhq.zip").exists()


def test_case_10_a_packing_that_was_killed_goes_on_with_what_is_missing(
    fork: Forker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, count = Path("data/synthetic-600-64"), 600
    partial = folder.with_name(f"{folder.name}.partial")

    def written() -> np.ndarray:
        return np.flatnonzero(np.load(partial / "images.state.npy")["state"])

    training = fork.start(*TINY_VAE, f"data.num_images={count}", "data.resolution=64", "name=cut")
    training.wait_for(lambda: (partial / "images.state.npy").exists() and len(written()) > 20)
    training.send(signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL
    assert not folder.exists()
    before, read = written().tolist(), list[int]()
    assert len(before) < count
    original = DrawnFaces.read

    def note(source: DrawnFaces, index: int, *settings: object) -> object:
        read.append(index)
        return original(source, index, *settings)  # type: ignore[arg-type]

    monkeypatch.setattr(DrawnFaces, "read", note)
    whole = find_or_write_pack(DrawnFaces(count), folder, 64, val_every=4)
    assert sorted(before + read) == list(range(count))
    for index in (before[0], before[-1], read[0], count - 1):
        assert np.array_equal(whole.images[index], draw_face(index, 64).transpose(2, 0, 1))


STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138}


@pytest.mark.parametrize("sent", STOPS)
@pytest.mark.parametrize("command", ["train.py", "latentfaces-prepare"])
def test_case_10_a_packing_that_is_told_to_end_ends_in_order_and_says_that_it_goes_on(
    command: str, sent: signal.Signals, fork: Forker
) -> None:
    count = 600
    if command == "train.py":
        partial = Path("data/synthetic-600-64.partial")
        options = [*TINY_VAE, f"data.num_images={count}", "data.resolution=64", "name=cut"]
    else:
        partial = Path("data/photos-256.partial")
        options = ["photos", "--resolution", "256"]
        write_folder(Path("photos"), photos([f"{number:03}.png" for number in range(count)]))
    packing = fork.start(*options, name=command)
    state = partial / "images.state.npy"
    packing.wait_for(lambda: state.exists() and np.load(state)["state"].any())
    packing.send(sent)
    assert packing.wait() == STOPS[sent], packing.said
    said = packing.said
    assert "Traceback" not in said
    assert f"topped by {sent.name}" in said
    if command == "train.py":
        assert said.splitlines()[-1].endswith("resume=auto")
    else:
        assert "Run the same command to resume." in said
    assert 0 < np.count_nonzero(np.load(state)["state"]) < count
    assert not partial.with_suffix("").exists()


def test_case_11_a_disk_that_is_too_small_is_told_before_anything_is_written(
    kaggle: Kaggle, trained: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", disk_with(24e9))
    assert "FFHQ needs 25.0 GB in data, only 24.0 are free" in refused("train.py", *FFHQ)
    assert kaggle.calls == []
    monkeypatch.setattr(shutil, "disk_usage", disk_with(0.6e9))
    said = refused("train.py", *TINY_VAE, "data.num_images=5000", "data.resolution=256")
    assert "packing synthetic-5000 needs 1.0 GB in data, only 0.6 are free: make room, or lower data.resolution" in said
    assert not [path for path in workplace.rglob("*") if path.is_file()]

    shutil.copytree(trained, workplace / "home")
    monkeypatch.chdir(workplace / "home")
    (cache,) = Path("data").glob("*/latents-*.npy")
    cache.unlink()
    monkeypatch.setattr(shutil, "disk_usage", disk_with(100))
    assert ".npy needs 0.0 GB" in refused("train.py", *TINY_LDM, *SHORT, "name=more")
    assert not list(Path("data").glob("*/latents-*"))


HOSTILE = {
    "a name that climbs": "../climbs.png",
    "a name that climbs from below": "b/../../climbs.txt",
    "a name that climbs on Windows": "b\\..\\..\\climbs.png",
    "an absolute name": "/tmp/outside.png",
    "an absolute name on Windows": "C:/outside.png",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_case_12_a_zip_that_climbs_out_of_its_folder_is_refused_naming_the_entry(name: str, pack: Prepare) -> None:
    write_zip(Path("home.zip"), {**photos(ALBUM), name: picture_bytes(0)})
    before = tree(Path())
    assert f"{zipfile.ZipInfo(name).filename} in home.zip climbs out of its folder" in pack("home.zip")
    assert tree(Path()) == before


def test_case_12_a_link_in_a_zip_is_refused_naming_the_entry(pack: Prepare) -> None:
    link = zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(write_zip(Path("home.zip"), photos(ALBUM)), "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "link.png in home.zip is a link to another file" in pack("home.zip")
    assert not Path("data").exists()


def test_case_12_a_bomb_is_refused_naming_the_entry(pack: Prepare) -> None:
    path = write_zip(Path("home.zip"), photos(["1.png", "2.png", "bomb.png"]))
    rewrite(path, "bomb.png", {b"PK\1\2": 24}, "<I", 2**28 + 1)
    assert "home.zip/bomb.png cannot be read (unpacks to over 268,435,456 bytes)" in pack("home.zip")
    # One that declares less than it unpacks to is found by its checksum.
    path = write_zip(Path("liar.zip"), photos(["1.png", "2.bmp"]), zipfile.ZIP_DEFLATED)
    rewrite(path, "2.bmp", {b"PK\1\2": 24}, "<I", 400)
    assert "2.bmp cannot be read" in pack("liar.zip")
    assert not Path("data/liar-6").exists()


LAYOUTS = {
    "nothing there": ({}, "nowhere", "nowhere does not exist"),
    "an empty folder": ({"empty/": b""}, "empty", "). Choose another folder."),
    "other files": ({"set/a.npy": b"x", "set/b.npy": b"x"}, "set", "but 2 file(s) (.npy), such as a.npy"),
    "photos still in their .zip": ({"set/ffhq.zip": b"x"}, "set", "Use data.root=set/ffhq.zip"),
    "a file that is no .zip": ({"set.txt": b"x"}, "set.txt", "is neither a folder nor a .zip. Unpack or convert it."),
    "one photo": (photos(["1.png"]), "1.png", "is one image. Point data.root at a folder"),
    "photos of a kind that is not read": (
        {"set/1.CR3": b"x", "set/2.cr3": b"x", "set/._1.CR3": b"x"},
        "set",
        "but 2 file(s) (.cr3), such as 1.CR3. Convert images to JPEG",
    ),
    "too few": (
        photos(["few/1.png", "few/2.png"]),
        "few",
        "1 training and 1 held-out images, but an optimizer step takes 8",
    ),
}


@pytest.mark.parametrize(("files", "root", "clue"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_case_13_a_folder_that_is_no_set_of_photos_is_told_with_what_is_in_it_and_nothing_packed(
    files: dict[str, bytes], root: str, clue: str, workplace: Path
) -> None:
    (workplace / "empty").mkdir()
    write_folder(workplace, {name: data for name, data in files.items() if not name.endswith("/")})
    options = ["model=vae", "model/autoencoder=tiny", "data=folder", "data.resolution=16", "data.batch_size=8"]
    said = refused("train.py", *options, f"data.root={root}")
    assert clue in said
    assert root in said
    assert not (workplace / "data").exists()


def test_case_13_a_root_that_is_not_in_utf8_is_rejected_at_the_start(workplace: Path) -> None:
    root = os.fsdecode(b"Jos\xe9")
    assert "is not in UTF-8. Rename the file or folder." in refused("train.py", *FFHQ, f'data.root="{root}"')
    assert not list(workplace.iterdir())


def test_case_14_latents_of_another_vae_or_that_are_damaged_are_not_used(
    trained: Path, workplace: Path, train: Callable[..., None]
) -> None:
    shutil.copytree(trained, workplace, dirs_exist_ok=True)
    (first,) = Path("data").glob("*/latents-*.npy")
    before, path = first.read_bytes(), Path("outputs/vae/faces/checkpoints/best_vae.pth")
    weights = torch.load(path, weights_only=True)
    torch.save({name: 1.5 * value for name, value in weights.items()}, path)
    train(*TINY_LDM, *SHORT, "trainer.max_steps=1", "name=other")
    (second,) = {*Path("data").glob("*/latents-*.npy")} - {first}
    assert first.read_bytes() == before != second.read_bytes()
    second.write_bytes(second.read_bytes()[:-100])
    assert f"{second} is missing or damaged. Delete it and run again." in refused(
        "train.py", *TINY_LDM, *SHORT, "name=third"
    )
    np.save(second, np.zeros((3, 2, 2, 4, 4, 4), np.float16))
    assert f"{second} has shape (3, 2, 2, 4, 4, 4)" in refused("train.py", *TINY_LDM, *SHORT, "name=fourth")


def test_case_15_a_damaged_photo_is_named_or_left_out_and_counted_up_to_a_cap(pack: Prepare) -> None:
    write_folder(Path("photos"), {**photos(ALBUM), "7.png": picture_bytes(7)[:100]})
    folder = ["model=vae", "model/autoencoder=tiny", "data=folder", "data.root=photos", "data.resolution=16"]
    said = refused("train.py", *folder, "data.batch_size=2")
    assert "photos/7.png cannot be read" in said
    assert "data.on_bad_image=skip" in said
    assert not Path("data/photos-16").exists()
    skipping = ("photos", "--on-bad-image", "skip")
    assert "1 of 12 images cannot be read: left out, and listed in data/photos-6/manifest.json" in pack(*skipping)
    assert open_pack(Path("data/photos-6")).manifest["num_images"] == 11
    shutil.rmtree("data")
    (Path("photos") / "8.png").write_bytes(b"<html>")
    assert "2 of 12 images cannot be read, more than on_bad_image=skip leaves out" in pack(*skipping)
    # Pillow would paint what is missing of a photo black.
    sources = list((Path(__file__).parents[2] / "src").rglob("*.py"))
    assert not any("LOAD_TRUNCATED" in path.read_text() for path in sources)


def test_case_16_a_photo_that_is_damaged_and_still_decodes_is_found_by_its_checksum(pack: Prepare) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, "JPEG", quality=95)
    whole = buffer.getvalue()
    write_folder(Path("photos"), {**photos(ALBUM), "face.jpg": whole})
    assert "The pack and its 13 images are unchanged" in pack("photos", "--verify")
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :]
    assert not np.array_equal(decode(damaged, 64).pixels, decode(whole, 64).pixels)  # and no error
    (Path("photos") / "face.jpg").write_bytes(damaged)
    said = pack("photos", "--verify")
    assert "photos/face.jpg has changed since it was packed" in said
    assert "1 damaged. Fetch them again" in said


def test_case_17_photos_of_every_kind_are_converted_by_their_rules(pack: Prepare) -> None:
    def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6  # the camera lay on its side
    top_white = Image.new("RGB", (6, 12))
    top_white.paste("white", (0, 0, 3, 12))  # the left half, which is the top when it stands upright
    files = {
        "1_grey.png": encoded(Image.new("L", (6, 6), 100)),
        "2_sixteen_bit.png": encoded(Image.fromarray(np.full((6, 6), 100 * 257, np.uint16))),
        "3_transparent.png": encoded(Image.new("RGBA", (6, 6), (0, 0, 0, 51))),
        "4_cmyk.tif": encoded(Image.new("CMYK", (6, 6), (0, 255, 255, 0)), "TIFF"),
        "5_turned.png": encoded(top_white, exif=turned),
        "6_wide.png": encoded(Image.new("RGB", (60, 30), (10, 20, 30))),
        "7_small.png": encoded(Image.new("RGB", (2, 2), (40, 50, 60))),
    }
    write_folder(Path("photos"), files)
    assert "1 of 7 images are smaller than 6 pixels: enlarged" in pack("photos")
    packed = open_pack(Path("data/photos-6"))
    assert packed.manifest["names"] == list(files)
    uniform = {0: (100, 100, 100), 1: (100, 100, 100), 2: (204, 204, 204), 3: (255, 0, 0), 5: (10, 20, 30)}
    for index, colour in {**uniform, 6: (40, 50, 60)}.items():
        assert (packed.images[index] == np.array(colour)[:, None, None]).all(), packed.manifest["names"][index]
    assert (packed.images[4][:, :3] == 255).all()
    assert (packed.images[4][:, 3:] == 0).all()


def test_case_18_a_pack_that_was_cut_is_told_before_training(train: Callable[..., None], workplace: Path) -> None:
    train(*TINY_VAE, *SHORT, "trainer.max_steps=1", "name=first")
    path = Path("data/synthetic-48-16/images.npy")
    path.write_bytes(path.read_bytes()[:-1])
    assert "data/synthetic-48-16 is not a complete pack" in refused("train.py", *TINY_VAE, *SHORT, "name=second")
    manifest = path.with_name("manifest.json")
    path.unlink()
    assert json.loads(manifest.read_text())["num_images"] == 48
    assert "images.npy is missing or damaged" in refused("train.py", *TINY_VAE, *SHORT, "name=second")
