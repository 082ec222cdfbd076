"""Tasks from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, run_command
from helpers.stand_ins import drawn, read, save_photo
from PIL import Image, ImageDraw

from latentfaces.data.align import Face
from latentfaces.marks import EDITED, GENERATED
from latentfaces.tasks.identify import read_source

SHOTS = ["num_images=2", "sampler.num_steps=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a run of each stage, whose VAE has skip connections; two photos and a mask."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_command("train.py", *TINY_VAE, *SHORT, "model.autoencoder.skip_connections=true", "name=faces")
        run_command("train.py", *TINY_LDM, *SHORT, "name=faces")
    for name, pixels in zip(("me.png", "you.png"), drawn(2, first=400), strict=True):
        save_photo(pixels, folder / name)
    hole = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(hole).ellipse((16, 16, 40, 40), fill=255)
    hole.save(folder / "hole.png")
    return folder


@pytest.fixture
def home(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


TASKS = {
    "interpolate": (["image=me.png", "task.to_image=you.png"], ["animation.gif"], 2),
    "invert": ([], ["noise.npy"], 2),
    "edit": (["image=me.png", "task.strength=0.6", "task.skips=0.5"], [], 2),
    "inpaint": (["image=me.png", "task.mask=hole.png", "task.resample=2"], [], 2),
    "variations": (["image=me.png", "task.amount=0.2"], [], 2),
    "neighbours": (["task.num_neighbours=3"], ["distances.png", "neighbours.json"], 2),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_writes_its_pictures_and_says_where(task: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, files, number = TASKS[task]
    run_command("sample.py", f"task={task}", *arguments, *SHOTS, f"output={task}")
    assert capsys.readouterr().out.splitlines()[-1] == f"{task}/grid.png"
    assert sorted(path.name for path in Path(task).iterdir()) == sorted(
        ["grid.png", *files, *(f"{index:05d}.png" for index in range(number))]
    )
    text = json.loads(Image.open(f"{task}/00001.png").text["latentfaces"])  # type: ignore[attr-defined]
    assert (text["task"], text["index"]) == (task, 1)
    shown = [path for path in Path(task).iterdir() if path.suffix in (".png", ".gif")]
    new = {path.name for path in shown if read_source(path) == GENERATED}
    assert new == ({"00000.png", "00001.png"} if task == "neighbours" else set())
    assert {read_source(path) for path in shown if path.name not in new} == {EDITED}


def test_a_photo_is_kept_around_what_is_painted_anew(home: Path) -> None:
    run_command("sample.py", "task=inpaint", "image=me.png", "task.mask=hole.png", *SHOTS, "output=kept")
    changed = np.abs(read(Path("kept/00000.png")) - read(Path("me.png"))).any(0)
    assert changed.any()
    assert not changed[:4].any()
    assert not changed[:, 11:].any()


def test_inversion_takes_more_steps_unless_told(home: Path) -> None:
    run_command("sample.py", "task=invert", "num_images=1", "output=fifty")
    text = json.loads(Image.open("fifty/00000.png").text["latentfaces"])  # type: ignore[attr-defined]
    assert text["settings"]["sampler"]["num_steps"] == 50


REFUSED = {
    "strength": (["task=edit", "image=me.png", "task.strength=0"], "task.strength=0"),
    "amount": (["task=variations", "image=me.png", "task.amount=1"], "task.amount=1"),
    "feather": (["task=inpaint", "image=me.png", "task.mask=hole.png", "task.feather=-1"], "task.feather=-1"),
    "a row of one": (["task=interpolate", "num_images=1"], "num_images=1"),
    "no mask": (["task=inpaint", "image=me.png"], "task.mask="),
    "no photo": (["task=inpaint", "task.mask=hole.png"], "image="),
    "half a pair": (["task=interpolate", "image=me.png"], "task.to_image="),
    "no speed": (["task=interpolate", "task.frames_per_second=0.001"], "task.frames_per_second=0.001"),
    "another format": (["task=interpolate", "task.animation=avi"], "task.animation=avi"),
    "no neighbours": (["task=neighbours", "task.num_neighbours=0"], "task.num_neighbours=0"),
    "a random sampler": (["task=invert", "sampler=ddpm"], "sampler=heun"),
    "a photo that is not there": (["task=edit", "image=nowhere.png"], "image=nowhere.png"),
}


@pytest.mark.parametrize("arguments_and_clue", REFUSED.values(), ids=REFUSED.keys())
def test_mistakes_get_one_sentence(
    arguments_and_clue: tuple[list[str], str], home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, clue = arguments_and_clue
    with pytest.raises(SystemExit) as exit_:
        run_command("sample.py", *arguments, f"output={tmp_path / 'refused'}")
    said = capfd.readouterr().err
    assert exit_.value.code != 0
    assert clue in said
    assert "Traceback" not in said


@pytest.fixture
def wide_photo(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo whose only face, says the stand-in for the detector, is at the right."""
    marks = np.array([[100.0, 30], [112, 32], [105, 38], [100, 46], [110, 47]])
    monkeypatch.setattr("latentfaces.tasks.paste.find_faces", lambda photo: [Face(marks, np.zeros(4), 0.9)])
    pixels = np.random.default_rng(0).integers(0, 256, (3, 80, 160), dtype=np.uint8)
    return Path(save_photo(pixels, home / "wide.png"))


@pytest.mark.parametrize("installed", [True, False])
def test_face_of_a_photo_is_edited_pasted_back_and_made_again(
    installed: bool, wide_photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfaces.data.align.has_detector", lambda: installed)
    run_command("sample.py", "task=edit", "image=wide.png", *SHOTS, f"output={tmp_path / 'edit'}")
    text = json.loads(Image.open(tmp_path / "edit" / "00001.png").text["latentfaces"])  # type: ignore[attr-defined]
    assert text["settings"]["align"] == ("auto" if installed else "false")
    assert (tmp_path / "edit" / "whole_00001.png").exists() == installed
    shown = "whole_00001.png" if installed else "00001.png"
    monkeypatch.setattr("latentfaces.data.align.has_detector", lambda: False)  # remake reads the recipe alone
    run_command("sample.py", "task=remake", f"image={tmp_path / 'edit' / shown}", f"output={tmp_path / 'again'}")
    assert np.array_equal(read(tmp_path / "again" / shown), read(tmp_path / "edit" / shown))
    if installed:
        assert np.array_equal(read(tmp_path / "again" / shown)[..., :60], read(wide_photo)[..., :60])


def test_alignment_without_a_photo_is_refused(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["task=edit"], ["task=generate"], ["task=generate", "image=me.png"]):
        with pytest.raises(SystemExit):
            run_command("sample.py", *arguments, "align=true", "output=refused")
        assert "has no effect" in capfd.readouterr().err


def test_previews_are_marked(home: Path) -> None:
    for stage, source in (("vae", EDITED), ("ldm", GENERATED)):
        previews = [*Path(f"outputs/{stage}/faces/images").glob("step_*.png")]
        assert {read_source(path) for path in previews} == {source}
