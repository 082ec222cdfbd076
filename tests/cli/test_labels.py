"""Labels from the command line: training, sampling, comparing, remaking."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import LABELED, TINY_LDM, TINY_VAE, Command, labeled_in_copy, refused, run_command
from helpers.states import checkpoint
from PIL import Image

from latentfaces.cli.init_run import condition_weight
from latentfaces.diffusion import Conditioning
from latentfaces.export.folder import export
from latentfaces.labels import Label
from latentfaces.pipeline import FacePipeline
from latentfaces.run import open_run

FEW = ["run=labeled", "num_images=3", "sampler.num_steps=2"]


@pytest.fixture(scope="module")
def labeled(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a run that knows three labels and started from one without labels."""
    return labeled_in_copy(trained, tmp_path_factory)


@pytest.fixture
def sample(labeled: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(labeled)
    shutil.rmtree("pictures", ignore_errors=True)
    return lambda *arguments: run_command("sample.py", *FEW, *arguments, "output=pictures")


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(Path("pictures") / name)).astype(int)


def metadata(name: str) -> dict[str, Any]:
    text: dict[str, Any] = json.loads(Image.open(Path("pictures") / name).text["latentfaces"])  # type: ignore[attr-defined]
    return text


def test_a_run_has_its_labels_and_those_of_its_training_images(labeled: Path) -> None:
    run = open_run(labeled / "outputs/ldm/labeled")
    model, rows = run.config["model"], np.load(run.folder / "labels.npy")
    schema = {label["name"]: label["kind"] for label in model["conditioning"]["labels"]}
    assert schema == {"smile": "binary", "hair_color": "category", "age": "number"}
    assert rows.shape == (36, 3)
    choices = len(model["conditioning"]["labels"][1]["choices"])
    assert model["denoiser"]["network"]["label_channels"] == 8 + 2 + (choices + 1) + 2
    weights = torch.load(run.folder / "checkpoints" / "best_denoiser.pth", weights_only=True)
    assert weights["network.embed_label.weight"].shape[1] == model["denoiser"]["network"]["label_channels"]


def test_asked_labels_are_in_the_image_and_it_is_remade(sample: Command) -> None:
    sample("labels.smile=1", "labels.age=free", "guidance=labels", "guidance.auto_weight=1.5", "seed=3")
    text, third = metadata("00002.png"), pixels("00002.png")
    assert text["labels"] == {"smile": 1, "age": "free"}
    assert text["labels_of_image"]["smile"] == 1
    assert set(text["labels_of_image"]) <= {"smile", "hair_color"}
    Path("pictures/00002.png").rename("face.png")
    shutil.rmtree("pictures")
    run_command("sample.py", "task=remake", "image=face.png", "output=pictures")
    assert np.abs(pixels("00000.png") - third).max() <= 1
    shutil.rmtree("pictures")
    sample("labels.smile=1", "labels.age=free", "guidance=labels", "guidance.auto_weight=1.5", "seed=3", "batch_size=1")
    assert np.abs(pixels("00002.png") - third).max() <= 1


def test_cells_differ_in_their_labels_alone(sample: Command) -> None:
    color = open_run("outputs/ldm/labeled").config["model"]["conditioning"]["labels"][1]["choices"][0]
    rest = [f"labels.hair_color={color}", "labels.age=free", "guidance=labels"]
    sample("task=compare", "task.rows={smile: [0, 1, free]}", *rest)
    by_cell = [pixels(f"{number:05d}.png") for number in range(9)]
    labels = [metadata(f"{number:05d}.png")["labels_of_image"].get("smile") for number in range(9)]
    assert labels == [0, 0, 0, 1, 1, 1, None, None, None]
    shutil.rmtree("pictures")
    sample("labels.smile=1", *rest)
    assert all(np.abs(pixels(f"{number:05d}.png") - by_cell[3 + number]).max() <= 1 for number in range(3))


def test_a_row_between_seeds_ends_with_the_faces_of_its_seeds(sample: Command) -> None:
    sample("task=interpolate", "task.to_seed=4", "task.animation=none")
    last = pixels("00002.png")
    shutil.rmtree("pictures")
    sample("seed=4")
    assert np.abs(pixels("00000.png") - last).max() <= 1


def test_the_pipeline_generates_what_is_asked(labeled: Path) -> None:
    pipeline = FacePipeline.load(labeled / "outputs/ldm/labeled")
    drawn = pipeline.labels_for([(0, 0), (0, 1)])
    faces = pipeline.generate(2, seed=0, labels={"smile": 1})
    assert pipeline.labels_for([(0, 0), (0, 1)])[:, 0].tolist() == [1, 1]
    assert torch.equal(pipeline.generate(2, seed=0), faces)  # it is asked until another is
    pipeline.ask({})
    assert torch.equal(pipeline.labels_for([(0, 0), (0, 1)]).nan_to_num(-1), drawn.nan_to_num(-1))


def test_a_photo_gets_another_label_without_guidance_by_default(sample: Command) -> None:
    Image.new("RGB", (16, 16), (200, 150, 120)).save("me.png")
    run_command(
        "sample.py", "run=labeled", "task=edit", "image=me.png", "labels.smile=1", "task.photo_labels={smile: 0}",
        "sampler.num_steps=2", "output=pictures",
    )  # fmt: skip
    assert metadata("00000.png")["guidance"] == {"_target_": "latentfaces.diffusion.NoGuidance"}
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["00000.png", "grid.png"]


def test_tuning_tries_guidance_by_labels(sample: Command) -> None:
    few = ["num_images=32", "task.weights=[1.5]", "task.emas=[]"]
    few += [f"~task.samplers.{name}" for name in ("fewer_steps", "dpmpp_2m", "ddpm")]
    sample("task=tune", *few)
    Path("outputs/ldm/labeled/tuned.json").unlink()
    assert ",labels,1.5," in Path("pictures/scores.csv").read_text()


def test_a_run_with_other_labels_starts_from_the_weights_of_those_that_both_have() -> None:
    glasses, age, hair = Label("glasses", "binary"), Label("age", "number"), Label("hair", "category", ("red", "blond"))
    other_hair = Label("hair", "category", ("blond", "gray"))
    earlier, now = Conditioning([glasses, hair]), Conditioning([age, other_hair, glasses])
    before = torch.arange(1.0, 8).expand(3, -1)  # 2 of an augmentation, then glasses, known, red, blond, known
    weight = condition_weight(torch.full((3, 7 + 2), -1.0), now, before, earlier)
    #                      augmentation, age, known, blond, gray, known, glasses, known
    assert weight[0].tolist() == [1, 2, -1, -1, 6, -1, 7, 3, 4]


def test_labels_of_a_run_from_an_unlabeled_one_start_fresh() -> None:
    assert condition_weight(torch.ones(3, 2), Conditioning([Label("glasses", "binary")]), None, None).eq(1).all()


MISTAKES = {
    "unknown label": (["run=labeled", "labels.smil=1"], "Unknown label labels.smil. Did you mean smile?"),
    "unknown value": (["run=labeled", "labels.smile=2"], "labels.smile=2 is not a value of this label. Choices: 0, 1"),
    "task of the VAE": (["run=labeled", "labels.smile=1", "task=reconstruct"], "no effect with task=reconstruct"),
    "remake": (["labels.smile=1", "task=remake", "image=face.png"], "labels.smile=... has no effect with task=remake"),
    "run without labels": (["run=faces", "labels.smile=1"], "labels.smile has no effect: this run was trained without"),
    "guidance of unknown labels": (["run=labeled", "task=invert", "guidance=labels"], "guidance=labels has no effect"),
    "guidance without labels": (["run=faces", "guidance=labels"], "guidance=labels needs a run that was trained with"),
    "grid without labels": (
        ["run=faces", "task=compare"],
        "task=compare needs a run that was trained with data.labels",
    ),
    "nothing to compare": (["run=labeled", "task=compare"], "task=compare has nothing to compare"),
    "one label twice": (
        ["run=labeled", "task=compare", "task.rows={smile: [0]}", "task.columns={smile: [1]}"],
        "smile is in task.rows and in task.columns",
    ),
    "strength": (["run=labeled", "task=edit", "labels.smile=1", "task.strength=1"], "task.strength=... has no effect"),
    "no labels": (["run=labeled", "task=edit", "task.mask=hole.png"], "task.mask=... has no effect without labels"),
    "digit first": (["run=labeled", "labels.5_o_Clock_Shadow=1"], "Unknown label labels.5_o_Clock_Shadow."),
    "a label that the grid varies": (
        ["run=labeled", "task=compare", "task.rows={smile: [0, 1]}", "labels.smile=1"],
        "labels.smile=... has no effect, since task.rows sets it. Leave one out.",
    ),
    "a label that the set varies": (
        ["run=labeled", "task=dataset", "task.labels={smile: [0, 1]}", "labels.smile=1"],
        "labels.smile=... has no effect, since task.labels sets it. Leave one out.",
    ),
    "no list": (["run=labeled", "task=compare", "task.rows={smile: 1}"], "task.rows has no list for smile"),
}


@pytest.mark.parametrize("arguments_and_clue", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_get_one_line(
    arguments_and_clue: tuple[list[str], str], labeled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labeled)
    arguments, clue = arguments_and_clue
    assert clue in refused("sample.py", *arguments, "output=refused")


def test_a_resume_continues_with_the_same_labels_alone(labeled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(labeled)
    shutil.copytree("outputs/ldm/labeled", "outputs/ldm/resumed")
    resumed = [*LABELED, "name=resumed", "resume=auto", "trainer.max_steps=6"]
    config = Path("outputs/ldm/resumed/config.yaml")
    text = config.read_text()
    config.write_text(text.replace("name: hair_color", "name: hair"))
    assert "data.labels=auto has changed since" in refused("train.py", *resumed)
    config.write_text(text)
    table = Path("outputs/ldm/resumed/labels.npy")
    rows = np.load(table)
    np.save(table, np.where(np.isnan(rows), rows, rows[::-1]))
    assert "Values of data.labels=auto have changed since" in refused("train.py", *resumed)
    np.save(table, rows)
    run_command("train.py", *resumed)
    assert checkpoint("ldm/resumed")["global_step"] == 6


IDLE = {
    "model.labels=smile is not a list. Write 'model.labels=[smile]'.": [
        *TINY_LDM,
        "data.labels=auto",
        "model.labels=smile",
    ],
    "model.labels has no effect without data.labels": [*TINY_LDM, "model.labels=[smile]"],
    "data.label_types has no effect without data.labels": [*TINY_LDM, "data.label_types.smile=category"],
    "data.labels=auto has no effect with model=vae": [*TINY_VAE, "data.labels=auto"],
}


@pytest.mark.parametrize("clue", IDLE)
def test_idle_options_of_labels_are_refused(clue: str, labeled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(labeled)
    assert clue in refused("train.py", *IDLE[clue], "name=idle")


def test_an_exported_model_has_the_labels_of_its_run(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentfaces.export.folder.write_onnx", lambda *_: None)
    run = open_run(labeled / "outputs/ldm/labeled")
    ours, loaded = FacePipeline.load(run), FacePipeline.from_pretrained(export(run, tmp_path / "out"))
    names = [(0, number) for number in range(8)]
    assert np.array_equal(loaded.labels_for(names), ours.labels_for(names), equal_nan=True)
    faces = [pipeline.generate(2, 0, labels={"smile": 1}) for pipeline in (ours, loaded)]
    assert torch.equal(*faces)
