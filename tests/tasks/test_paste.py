"""Faces of the user's photos: chosen, cropped, edited and pasted back, with a stand-in for the detector."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stand_ins import save_photo
from PIL import Image

from latentfaces.data.align import Face
from latentfaces.data.crops import Square, crop, inverse, points_in
from latentfaces.diffusion import HeunSampler
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Edit, Inpaint, PictureFolder, Reconstruct, Variations
from latentfaces.tasks import paste as module
from latentfaces.tasks.paste import Alignment
from latentfaces.tasks.photos import read_photos

SIDE, WIDTH, HEIGHT = 16, 90, 60
MARKS = np.array([[40.0, 20], [50, 22], [44, 27], [39, 34], [48, 35]])
"""A face that is turned by 11 degrees."""
FACES = [Face(MARKS, np.zeros(4), 0.9), Face((MARKS - [44, 27]) / 2 + [75, 40], np.zeros(4), 0.8)]


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A photo with two faces, as the stand-in says."""
    monkeypatch.setattr(module, "find_faces", lambda photo: FACES)
    pixels = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
    return save_photo(pixels, tmp_path / "me.png")


def pixels_of(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def inside(square: Square) -> np.ndarray:
    """Mask of the pixels whose center is in the square, (HEIGHT, WIDTH)."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    points = points_in(inverse(square.affine(1)), np.stack([x, y], axis=-1).reshape(-1, 2))
    return ((points >= 0) & (points <= 1)).all(1).reshape(HEIGHT, WIDTH)


def options(image: str, **more: object) -> dict[str, object]:
    sampling = {"sampler": HeunSampler(4), "num_images": 2, "seed": 0, "batch_size": 3, "num_photos": 4}
    return sampling | {"image": image, "align": "true"} | more


def test_model_sees_the_crop_of_the_chosen_face(photo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        seen = read_photos(photo, SIDE, 1, 0, alignment=Alignment("auto", number, tmp_path)).images[0]
        expected = crop(Image.open(photo), FACES[number - 1].square, SIDE)
        assert np.array_equal(seen.permute(1, 2, 0), expected)
    assert "2 faces in me.png, task.face=2 is used" in capsys.readouterr().out
    assert pixels_of(tmp_path / "faces_me.png").shape == (HEIGHT, WIDTH, 3)
    assert (pixels_of(tmp_path / "faces_me.png") != pixels_of(photo)).any()


def test_photos_of_one_name_in_several_folders_get_a_picture_of_their_faces_each(photo: str, tmp_path: Path) -> None:
    album = tmp_path / "album"
    for number, name in enumerate(("a/me.png", "b/me.png", "b/me.jpg")):
        (album / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH + number, HEIGHT)).save(album / name)
    read_photos(str(album), SIDE, 3, 0, alignment=Alignment("true", 1, tmp_path))
    shown = [pixels_of(tmp_path / f"faces_me{suffix}.png") for suffix in ("", "_2", "_3")]
    assert [pixels.shape[1] for pixels in shown] == [WIDTH, WIDTH + 2, WIDTH + 1]


def test_photo_that_is_framed_already_is_only_aligned_on_demand(photo: str, tmp_path: Path) -> None:
    image = crop(Image.open(photo), FACES[0].square, 64)
    framed = Square.central(64, 64)
    marks = points_in(inverse(FACES[0].square.affine(64)), MARKS)
    assert Square.of_landmarks(marks).center == pytest.approx(framed.center)
    image.save(tmp_path / "framed.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "find_faces", lambda photo: [Face(marks, np.zeros(4), 0.9)])
        auto = read_photos(str(tmp_path / "framed.png"), SIDE, 1, 0, alignment=Alignment("auto", 1, tmp_path))
        always = read_photos(str(tmp_path / "framed.png"), SIDE, 1, 0, alignment=Alignment("true", 1, tmp_path))
    assert not auto.aligned
    assert torch.equal(auto.images, read_photos(str(tmp_path / "framed.png"), SIDE, 1, 0).images)
    assert (auto.images.float() - always.images).abs().max() <= 2
    assert always.aligned[0].square.side == pytest.approx(64)


def test_missing_faces_are_one_line(
    photo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"task.face=3 must be between 1 and 2.*me.png"):
        read_photos(photo, SIDE, 1, 0, alignment=Alignment("auto", 3, tmp_path))
    monkeypatch.setattr(module, "find_faces", lambda photo: [])
    with pytest.raises(UserError, match=r"No face was found in me.png"):
        read_photos(photo, SIDE, 1, 0, alignment=Alignment("true", 1, tmp_path))
    assert torch.equal(
        read_photos(photo, SIDE, 1, 0, alignment=Alignment("auto", 1, tmp_path)).images,
        read_photos(photo, SIDE, 1, 0).images,
    )
    assert "No face was found in me.png" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["edit", "variations", "reconstruct"])
def test_result_is_pasted_back_and_all_else_is_the_photo(
    pipeline: FacePipeline, photo: str, tmp_path: Path, kind: str
) -> None:
    task = {
        "edit": Edit(**options(photo, pack=None, strength=0.9, skips=0.0)),
        "variations": Variations(**options(photo, pack=None, amount=0.5)),
        "reconstruct": Reconstruct(pack=None, image=photo, num_images=2, seed=0, batch_size=2, align="true"),
    }[kind]
    with PictureFolder(tmp_path / "out", {"task": kind}) as pictures:
        task(pipeline, pictures)
    names = sorted(path.name for path in (tmp_path / "out").glob("whole_*"))
    assert names == [f"whole_{number:05d}.png" for number in range(1 if kind == "reconstruct" else 2)]
    for name in names:
        whole, where = pixels_of(tmp_path / "out" / name), inside(FACES[0].square)
        assert np.array_equal(whole[~where], pixels_of(photo)[~where])
        assert (whole != pixels_of(photo))[where].mean() > 0.5
        assert Image.open(tmp_path / "out" / name).text == Image.open(tmp_path / "out" / name[6:]).text  # type: ignore[attr-defined]


def test_filling_changes_only_what_the_mask_shows(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (38, 20, 50, 30))
    mask.save(tmp_path / "mask.png")
    task = Inpaint(**options(photo, mask=str(tmp_path / "mask.png"), resample=1, skips=None, feather=1))
    with PictureFolder(tmp_path / "out", {}) as pictures:
        task(pipeline, pictures)
    changed = (pixels_of(tmp_path / "out" / "whole_00001.png") != pixels_of(photo)).any(-1)
    assert not changed[~np.asarray(mask, bool)].any()
    assert changed[np.asarray(mask, bool)].mean() > 0.5


def test_nothing_is_pasted_without_alignment(pipeline: FacePipeline, photo: str, tmp_path: Path) -> None:
    with PictureFolder(tmp_path / "out", {}) as pictures:
        Reconstruct(pack=None, image=photo, num_images=1, seed=0, batch_size=1)(pipeline, pictures)
    assert not list((tmp_path / "out").glob("whole_*"))
