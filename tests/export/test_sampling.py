"""sample.py on a model folder."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import refused, run_command
from helpers.stand_ins import drawn, read, save_photo
from PIL import Image

TASKS = {
    "generate": ["num_images=2"],
    "invert": ["image=me.png", "sampler.num_steps=2"],
    "edit": ["image=me.png", "num_images=1"],
    "inpaint": ["image=me.png", "task.mask=hole.png", "num_images=1", "task.resample=1"],
}


@pytest.fixture
def home(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workplace of the run and a model folder without anything else, in which commands run."""
    shutil.copytree(exported / "out", tmp_path / "model", ignore=shutil.ignore_patterns("*.onnx"))
    save_photo(drawn(1, first=400)[0], tmp_path / "me.png")
    Image.new("L", (16, 16), 255).crop((4, 4, 12, 12)).resize((16, 16)).save(tmp_path / "hole.png")
    monkeypatch.chdir(tmp_path)
    return exported


@pytest.mark.parametrize("task", TASKS)
def test_a_task_gives_the_images_of_the_exported_run(task: str, home: Path) -> None:
    for run, output in (("model", "ours"), (home / "outputs/ldm/faces", "theirs")):
        run_command("sample.py", f"run={run}", f"task={task}", *TASKS[task], f"output={output}")
    assert np.array_equal(read(Path("ours/grid.png")), read(Path("theirs/grid.png")))


def test_a_face_is_remade_from_a_model_folder(home: Path) -> None:
    run_command("sample.py", "run=model", "num_images=2")
    (face,) = Path("model/samples").glob("generate_*/00001.png")
    run_command("sample.py", "task=remake", f"image={face}", "output=again")
    assert np.abs(read(Path("again/00000.png")) - read(face)).max() <= 1


def test_a_task_that_needs_the_training_images_says_so(home: Path) -> None:
    clue = "task=neighbours needs the training images, which a model folder does not have. Give run=RUN."
    assert clue in refused("sample.py", "run=model", "task=neighbours", "output=none")
    assert "Give photos with image=" in refused("sample.py", "run=model", "task=reconstruct", "output=none")
    assert "ema=0.1 has no effect" in refused("sample.py", "run=model", "ema=0.1", "output=none")
