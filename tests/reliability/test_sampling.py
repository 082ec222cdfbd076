"""Mistakes in what sample.py is asked for (case 39): one sentence with key and remedy, and nothing older damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import refused, run_command
from helpers.photo_files import picture_bytes, tree
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentfaces.cli.recipe import VERSION
from latentfaces.diffusion import EulerSampler
from latentfaces.pipeline import FacePipeline
from latentfaces.ranks import Ranks


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workplace with a finished run of each stage, to write into."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


WRONG = {
    "a run that is not there": (["run=nobody"], "run=nobody is neither a run's folder nor a name in outputs/ldm"),
    "a folder that is no run": (["run=data"], "run=data"),
    "a VAE in place of an LDM": (["run=outputs/vae/faces"], "python train.py model=ldm"),
    "no pictures": (["num_images=0"], "num_images=0 is invalid: input should be greater than or equal to 1"),
    "a word for a number": (["num_images=abc"], "num_images"),
    "a batch of nothing": (["batch_size=0"], "batch_size=0 is invalid: input should be greater than or equal to 1"),
    "a seed below zero": (["seed=-1"], "seed=-1 is invalid: input should be greater than or equal to 0"),
    "a seed beyond all": (
        ["seed=99999999999999999999"],
        "seed=99999999999999999999 is invalid: input should be less than 4294967296",
    ),
    "no steps": (
        ["sampler.num_steps=0"],
        "error: sampler.num_steps=0 is invalid: input should be greater",
    ),
    "an unknown task": (["task=paint"], "paint"),
    "an unknown precision": (["precision=fp8"], "precision"),
    "a photo where none is taken": (["image=me.png"], "image=... has no effect with task=generate"),
    "an average that is not looked at": (["task=tune", "ema=0.1"], "ema=... has no effect with task=tune"),
    "a face before the first": (["task.first=-1"], "task.first=-1 is invalid: input should be greater"),
    "a weight of NaN": (
        ["guidance=auto", "guidance.weight=nan"],
        "guidance.weight=nan is invalid: a number must be finite",
    ),
    "no photos": (["task=edit", "task.num_photos=0"], "task.num_photos=0 is invalid: input should be greater"),
    "a row of one": (["task=interpolate", "num_images=1"], "num_images=1 is invalid: input should be greater"),
    "a strength beyond all": (["task=edit", "task.strength=2"], "task.strength=2 is invalid: input should be less"),
    "a weight below one": (["guidance=auto", "guidance.weight=0.5"], "guidance.weight=0.5 is invalid: input should be"),
    "a weight of no guidance": (
        ["guidance.weight=2"],
        "Unknown key guidance.weight for this choice of guidance. It belongs to guidance=auto, internal, labels.",
    ),
    "an option of another sampler": (
        ["sampler=heun", "sampler.eta=1"],
        "Unknown key sampler.eta for this choice of sampler. It belongs to sampler=ddim, ",
    ),
    "an unknown spacing": (["sampler.spacing=even"], "'karras' or 'log_snr', or 'auto'"),
    "a pack other than the run's": (["task=neighbours", "task.pack=data/other"], "task.pack=... has no effect"),
    "a face of a seed between photos": (
        ["task=interpolate", "image=me.png", "task.to_image=you.png", "task.number=1"],
        "task.number=... has no effect between photos",
    ),
    "an inversion by a VAE alone": (["run=outputs/vae/faces", "task=invert"], "This run is of stage 1"),
    "a key that does not exist": (["num_image=3"], "Unknown key num_image. Did you mean num_images?"),
}


@pytest.mark.parametrize(("typed", "clue"), WRONG.values(), ids=WRONG.keys())
def test_case_39_wrong_arguments_are_told_by_their_key(
    typed: list[str], clue: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    assert clue in refused("sample.py", *typed, "output=pictures")
    assert not Path("pictures").exists()


def test_case_39_a_task_that_is_work_for_one_process_is_refused_several(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(Ranks, "started", lambda: Ranks(rank=1, count=2))
    for task in ("interpolate", "reconstruct", "neighbours", "tune"):
        assert f"task={task} runs in one process" in refused("sample.py", f"task={task}", "output=pictures")
    assert not Path("pictures").exists()


def test_case_39_tasks_of_srun_do_not_all_do_everything(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert "Use torchrun" in refused("sample.py", "output=pictures")
    assert not Path("pictures").exists()


def test_case_39_in_a_shell_of_srun_it_works_as_anywhere(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert "no_run" in refused("sample.py", "run=no_run", "output=pictures")


def test_case_39_weights_that_are_missing_or_another_networks_are_named(home: Path) -> None:
    path = Path("outputs/ldm/faces/checkpoints/best_denoiser.pth")
    whole = path.read_bytes()
    path.write_bytes(Path("outputs/vae/faces/checkpoints/best_vae.pth").read_bytes())
    assert f"{path} does not fit the config.yaml" in refused("sample.py")
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path} does not fit the config.yaml of its run, or is damaged" in refused("sample.py")
    path.unlink()
    assert f"{path} is missing" in refused("sample.py")


def test_case_39_an_output_that_holds_pictures_or_cannot_be_written_is_told_before_the_faces_are_made(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["num_images=1", "sampler.num_steps=1"]
    run_command("sample.py", *few, "output=pictures")
    before = tree(Path("pictures"))
    monkeypatch.setattr(FacePipeline, "faces", None)  # from here on nothing may be made
    assert "output=pictures already contains images. Choose another folder." in refused(
        "sample.py", *few, "output=pictures"
    )
    assert tree(Path("pictures")) == before
    Path("a_file").write_text("mine")
    assert "output=a_file cannot be written (File exists)" in refused("sample.py", *few, "output=a_file")
    assert Path("a_file").read_text() == "mine"
    assert "output=/proc cannot be written" in refused("sample.py", *few, "output=/proc")  # for anybody, root included


def test_case_39_the_same_seed_gives_the_same_faces_for_any_batch_size(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    pipeline = FacePipeline.load("outputs/ldm/faces")
    sampler = EulerSampler(3)
    all_at_once = pipeline.generate(5, seed=4, sampler=sampler, batch_size=5)
    one_by_one = pipeline.generate(5, seed=4, sampler=sampler, batch_size=1)
    fewer = pipeline.generate(3, seed=4, sampler=sampler, batch_size=2)
    other = pipeline.generate(5, seed=5, sampler=sampler)
    # Products of another size round differently in the last bit of float32, which may move a value to the next level.
    assert (all_at_once.int() - one_by_one.int()).abs().max() <= 1
    assert (all_at_once[:3].int() - fewer.int()).abs().max() <= 1
    assert (all_at_once != one_by_one).float().mean() < 1e-3
    assert not torch.equal(all_at_once, other)


def test_case_39_a_photo_that_is_none_is_named(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    torn = tmp_path / "torn.png"
    torn.write_bytes(picture_bytes(0)[:200])
    options = ["task=reconstruct", f"output={tmp_path / 'out'}"]
    assert "image=nowhere.png does not exist" in refused("sample.py", *options, "image=nowhere.png")
    assert "torn.png cannot be read" in refused("sample.py", *options, f"image={torn}")
    assert "images.npy cannot be read (not one of" in refused(
        "sample.py", *options, "image=data/synthetic-48-16/images.npy"
    )


@pytest.mark.parametrize(
    ("change", "clue"),
    [
        ({}, "(no task, sampler or guidance)"),
        ({"_target_": "latentfaces.tasks.Nothing"}, "latentfaces.tasks.Nothing may not be named by"),
        ({"sampler": {"_target_": "latentfaces.diffusion.NoGuidance"}}, "(no task, sampler or guidance)"),
        ({"seed": -1}, "task.seed=-1 is invalid"),
    ],
)
def test_a_recipe_that_describes_no_task_is_one_line(
    change: dict[str, object], clue: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    sampler = {"_target_": "latentfaces.diffusion.EulerSampler", "num_steps": 1}
    task = {"_target_": "latentfaces.tasks.Generate", "sampler": sampler, "first": 0, "npz": False}
    settings = {**task, "num_images": 1, "seed": 0, "batch_size": 1, **change} if change else {}
    guidance = {"_target_": "latentfaces.diffusion.NoGuidance"}
    recipe = {"run": "outputs/ldm/faces", "task": "generate", "settings": settings, "guidance": guidance}
    text = PngInfo()
    text.add_text("latentfaces", json.dumps({**recipe, "version": VERSION}))
    Image.new("RGB", (8, 8)).save(tmp_path / "odd.png", pnginfo=text)
    said = refused("sample.py", "task=remake", f"image={tmp_path / 'odd.png'}", f"output={tmp_path / 'out'}")
    assert clue in said


def test_a_picture_cannot_make_remake_run_a_network_from_a_file(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("a file that a picture names was run"))
    evil = tmp_path / "evil.pt"
    evil.write_bytes(b"PK")
    settings = {
        "_target_": "latentfaces.tasks.Evaluate", "sampler": {"_target_": "latentfaces.diffusion.EulerSampler"},
        "pack": "data/synthetic-48-16", "features": str(evil), "weights": None, "num_images": 50,
        "seed": 0, "batch_size": 50,
    }  # fmt: skip
    recipe = {"run": "outputs/ldm/faces", "weights": None, "task": "evaluate", "settings": settings, "version": VERSION}
    text = PngInfo()
    guidance = {"_target_": "latentfaces.diffusion.NoGuidance"}
    text.add_text("latentfaces", json.dumps({**recipe, "precision": "fp32", "ema": None, "guidance": guidance}))
    Image.new("RGB", (8, 8)).save(tmp_path / "evil.png", pnginfo=text)
    said = refused("sample.py", "task=remake", f"image={tmp_path / 'evil.png'}", f"output={tmp_path / 'out'}")
    assert "latentfaces.tasks.Evaluate may not be named by" in said
