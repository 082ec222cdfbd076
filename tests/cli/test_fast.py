"""train.py model=fast run=RUN: from a trained run to one of 1, 2 or 4 evaluations."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, refused, run_command, trained_in

from latentfaces.diffusion import FlowMapSampler, NoGuidance
from latentfaces.pipeline import FacePipeline
from latentfaces.run import open_run

LABELED = [*TINY_LDM, *SHORT, "init=faces", "model/augmentation=nonleaky", "data.labels=auto", "name=labeled"]
LABELED += ["model.labels=[smile,age]"]
FAST = ["model=fast", "run=labeled", *SHORT, "data.batch_size=8", "model.loss.num_steps=4", "name=fast"]
FAST += ["guidance@model.loss.guidance=labels"]
FEW = ["run=fast", "num_images=2"]


@pytest.fixture(scope="module")
def distilled(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a run of model=fast, named "fast", to read."""
    place = shutil.copytree(trained, tmp_path_factory.mktemp("distilled") / "place")
    return trained_in(place, LABELED, FAST)


@pytest.fixture
def place(distilled: Path, workplace: Path) -> Path:
    for folder in ("outputs", "data"):
        shutil.copytree(distilled / folder, workplace / folder)
    return workplace


def test_a_fast_run_has_the_network_of_its_run_and_samples_in_few_steps(place: Path) -> None:
    before, fast = (open_run(f"outputs/ldm/{name}") for name in ("labeled", "fast"))
    assert fast.config["model"]["conditioning"] == before.config["model"]["conditioning"]
    network = before.config["model"]["denoiser"]["network"]
    without_augmentation = network | {"label_channels": network["label_channels"] - 8, "flow_map": True}
    assert fast.config["model"]["denoiser"]["network"] == without_augmentation
    pipeline = FacePipeline.load(fast, "cpu")
    assert isinstance(pipeline.sampler, FlowMapSampler)
    assert pipeline.sampler.num_steps == 4
    assert isinstance(pipeline.guidance, NoGuidance)
    noise = pipeline.noise([(0, 0)])
    one, four, usual = (pipeline.sample(noise, s) for s in (FlowMapSampler(1), FlowMapSampler(4), pipeline.sampler))
    assert torch.equal(usual, four)
    assert not torch.equal(usual, one)
    for options in ([], ["sampler.num_steps=1"], ["sampler=few", "sampler.num_steps=2"]):
        run_command("sample.py", *FEW, *options, f"output=few{len(options)}")
    assert len(list(Path().glob("few*/grid.png"))) == 3
    run_command("sample.py", *FEW, "task=edit", "output=edited")  # which is heun's elsewhere
    assert b"FlowMapSampler" in Path("edited/grid.png").read_bytes()  # its recipe


def test_a_fast_run_is_resumed(place: Path) -> None:
    run_command("train.py", *FAST, "trainer.max_steps=6", "resume=auto")
    assert open_run("outputs/ldm/fast").result()["steps"] == 6


REFUSED = {
    "no run": ("train.py", ["model=fast", *SHORT, "name=x"], "Add run=RUN."),
    "run= without model=fast": (
        "train.py",
        [*TINY_LDM, "run=faces", "name=x"],
        "has no effect without model=fast",
    ),
    "a fast run again": ("train.py", [*FAST, "run=fast", "name=x"], "is a run of model=fast. Use the run that"),
    "labels of a run without": ("train.py", [*FAST, "run=faces", "name=x"], "was trained with data.labels"),
    "labels that the run does not have": (
        "train.py",
        ["model=fast", "run=faces", *SHORT, "data.labels=auto", "name=x"],
        "was trained with other labels. Use its data.labels.",
    ),
    "another denoiser": (
        "train.py",
        ["model=fast", "run=faces", *SHORT, "model.denoiser.network.width=32", "name=x"],
        "run=outputs/ldm/faces has model.denoiser.network.width=16",
    ),
    "another VAE": ("train.py", [*FAST, "vae=faces", "name=x"], "vae=... has no effect with model=fast"),
    "weights of another run": ("train.py", [*FAST, "init=faces", "name=x"], "init=... has no effect with model=fast"),
    "another sampler": ("sample.py", [*FEW, "sampler=heun"], "Use sampler=few"),
    "few steps of a usual run": (
        "sample.py",
        ["run=labeled", "sampler=few"],
        "needs a run of model=fast",
    ),
    "a search of settings": ("sample.py", [*FEW, "task=tune"], "task=tune has no effect on a run of model=fast"),
    "an inversion": ("sample.py", [*FEW, "task=invert"], "has no inverse"),
    "other numbers of steps": ("sample.py", [*FEW, "sampler=few", "sampler.num_steps=3"], "should be 1, 2 or 4"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_get_one_line(mistake: str, place: Path) -> None:
    command, options, clue = REFUSED[mistake]
    said = refused(command, *options)
    assert clue in said
    assert said.count("\n") == 1
