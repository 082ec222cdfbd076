"""New faces in photos, with a stand-in for the detector."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.stand_ins import folder_for, read, save_photo
from PIL import Image
from torch import Tensor, nn

from latentfaces.data.align import Face
from latentfaces.data.crops import inverse, points_in
from latentfaces.diffusion import Conditioning, HeunSampler
from latentfaces.errors import UserError
from latentfaces.labels import Label
from latentfaces.marks import EDITED
from latentfaces.pipeline import FacePipeline
from latentfaces.tasks import Anonymize
from latentfaces.tasks import anonymize as module
from latentfaces.tasks.anonymize import CENTER, RADII, inside_of_face
from latentfaces.tasks.identify import read_source
from latentfaces.tasks.output import PictureFolder

WIDTH, HEIGHT, SIDE = 90, 60, 16
MARKS = np.array([[40.0, 20], [50, 22], [44, 27], [39, 34], [48, 35]])
FACES = [Face(MARKS, np.zeros(4), 0.9), Face((MARKS - [44, 27]) / 2 + [75, 40], np.zeros(4), 0.8)]
"""Two faces, turned by 11 degrees."""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Anonymize:
    """A folder with a photo of two faces, one of none, and a damaged one."""
    monkeypatch.setattr(module, "session", lambda: None)
    monkeypatch.setattr(module, "find_faces", lambda photo: FACES if photo.width == WIDTH else [])
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
    save_photo(pixels, tmp_path / "photos" / "two.png")
    save_photo(pixels[:, :, :50], tmp_path / "photos" / "none.png")
    (tmp_path / "photos" / "damaged.png").write_bytes(b"\x89PNG")
    sampling: dict[str, Any] = {"sampler": HeunSampler(2), "num_images": 9, "seed": 0, "batch_size": 1}
    filling: dict[str, Any] = {"resample": 1, "skips": None, "feather": None}
    return Anonymize(
        **sampling, **filling, image=str(tmp_path / "photos"), pack="not here", recognizer=None, same_person=None
    )


def far_from_faces() -> np.ndarray:
    """Pixels (HEIGHT, WIDTH) that are more than a pixel of the crop outside the ellipse of each face."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    outside = np.ones((HEIGHT, WIDTH), bool)
    for face in FACES:
        points = points_in(inverse(face.square.affine(1)), np.stack([x, y], -1).reshape(-1, 2)) - CENTER
        radii = np.array(RADII) + 1.5 / SIDE
        outside &= (np.square(points / radii).sum(1) > 1).reshape(HEIGHT, WIDTH)
    return outside


def test_each_face_is_new_all_else_is_the_photo_and_others_are_listed(
    task: Anonymize, pipeline: FacePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = task(pipeline, folder_for(tmp_path / "out"))
    damaged, none, two = json.loads(path.read_text())["files"]
    assert "damaged.png cannot be read" in damaged["left_out"]
    assert none == {"photo": "none.png", "left_out": "no face found"}
    assert two == {"photo": "two.png", "file": "images/00002.png", "faces": 2}
    before, after = (read(file) for file in (tmp_path / "photos/two.png", tmp_path / "out/images/00002.png"))
    changed, away = (before != after).any(0), far_from_faces()
    assert not changed[away].any()
    for face in FACES:
        x, y = (int(value) for value in face.landmarks[2])
        assert changed[y - 1 : y + 2, x - 1 : x + 2].all()
    assert read_source(tmp_path / "out/images/00002.png") == EDITED
    said = capsys.readouterr().out
    assert "2 faces in 1 of 3 photos" in said
    assert "left out: none.png (no face found)" in said


def test_the_inside_of_the_face_has_no_effect(task: Anonymize, pipeline: FacePipeline, tmp_path: Path) -> None:
    first = read(task(pipeline, folder_for(tmp_path / "out")).with_name("images") / "00002.png")
    photo = np.asarray(Image.open(tmp_path / "photos/two.png")).copy()
    x, y = (int(value) for value in FACES[0].landmarks[2])
    photo[y - 2 : y + 3, x - 2 : x + 3] = 0
    Image.fromarray(photo).save(tmp_path / "photos/two.png")
    second = read(task(pipeline, folder_for(tmp_path / "other")).with_name("images") / "00002.png")
    assert np.array_equal(first, second)


def test_a_killed_task_resumes_to_the_same_files(
    task: Anonymize, pipeline: FacePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    shutil.copy(photos / "two.png", photos / "zwei.png")
    task(pipeline, folder_for(tmp_path / "once"))
    write, written = PictureFolder.write, list[str]()

    def dying(self: PictureFolder, image: Tensor, name: str, *args: Any, **more: Any) -> Path:
        if written:
            raise KeyboardInterrupt
        written.append(name)
        return write(self, image, name, *args, **more)

    with monkeypatch.context() as patch, folder_for(tmp_path / "killed") as pictures:
        patch.setattr(PictureFolder, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            task(pipeline, pictures)
    other = PictureFolder(tmp_path / "killed", {"run": "other"})
    with other, pytest.raises(UserError, match=r"killed contains images of other settings"):
        task(pipeline, other)
    first = tmp_path / "killed" / "images" / "00002.png"
    unchanged = first.stat().st_mtime_ns
    with (tmp_path / "killed" / "photos.partial.jsonl").open("a") as file:
        file.write('{"photo": "zw')  # cut by the kill
    with folder_for(tmp_path / "killed") as pictures:
        task(pipeline, pictures)
    assert first.stat().st_mtime_ns == unchanged
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {"photos.json", "images"}
    for name in ("photos.json", "images/00002.png", "images/00003.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    with folder_for(tmp_path / "killed") as pictures, pytest.raises(UserError, match=r"killed already contains images"):
        task(pipeline, pictures)


class Mean(nn.Module):
    """Mean color, so that the distance is that of the colors."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


def test_the_recognizer_compares_each_face_before_and_after(
    task: Anonymize, pipeline: FacePipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.jit.script(Mean()).save(str(tmp_path / "net.pt"))
    near = replace(task, recognizer=str(tmp_path / "net.pt"), same_person=0.0)
    result = json.loads(near(pipeline, folder_for(tmp_path / "near")).read_text())
    first, second = result["files"][2]["distances"]
    assert result["fraction_beyond"] == 1
    assert result["median_distance"] == pytest.approx((first + second) / 2)
    limit = (first + second) / 2
    half = json.loads(replace(near, same_person=limit)(pipeline, folder_for(tmp_path / "half")).read_text())
    assert half["fraction_beyond"] == 0.5
    assert "50.0% of the faces" in capsys.readouterr().out


def test_labels_of_a_face_are_recognized_unless_requested(
    task: Anonymize, pipeline: FacePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    conditioning = Conditioning([Label(name, "binary") for name in ("Smiling", "Male", "Hat")])
    monkeypatch.setattr(pipeline, "conditioning", conditioning)
    monkeypatch.setattr(pipeline, "asked", conditioning.parse({"Male": 0}))
    crops = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    probes: Any = {name: lambda seen: torch.arange(len(seen)) for name in ("Smiling", "Male")}
    labels = task.labels(pipeline, crops, probes)
    assert labels[:, :2].tolist() == [[0, 0], [1, 0]]
    assert labels[:, 2].isnan().all()
    assert task.labels(pipeline, crops, {}).isnan().sum() == 4


def test_the_inside_is_an_ellipse() -> None:
    inside = inside_of_face(200)
    assert inside.float().mean() == pytest.approx(np.pi * RADII[0] * RADII[1], abs=0.002)
    assert inside[round(200 * CENTER[1]), round(200 * CENTER[0])]


def test_options_that_do_not_fit_are_one_line(task: Anonymize, pipeline: FacePipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task=anonymize needs photos"):
        replace(task, image=None)
    with pytest.raises(UserError, match=r"belong together"):
        replace(task, recognizer="net.pt")
    (tmp_path / "net.pt").write_bytes(b"no network")
    wrong = replace(task, recognizer=str(tmp_path / "net.pt"), same_person=0.6)
    with pytest.raises(UserError, match=r"task.recognizer=.*net.pt is not a file of torch.jit.save"):
        wrong(pipeline, folder_for(tmp_path / "out"))
