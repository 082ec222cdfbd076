"""Run folders that earlier versions wrote: they open, sample and resume."""

import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.commands import Command, refused
from helpers.states import checkpoint

from latentfaces.cli.errors import explain
from latentfaces.diffusion import DPMpp2MSampler, NoGuidance
from latentfaces.errors import UserError
from latentfaces.pipeline import FacePipeline
from latentfaces.run import MOVED, find_run, open_run

RUNS = Path(__file__).parent / "runs"


@pytest.fixture
def earlier(workplace: Path) -> Path:
    """A workplace with the runs of both stages, as of 2026-11-29, and one PNG."""
    zipfile.ZipFile(RUNS / "2026-11-29.zip").extractall(workplace)
    return workplace


def test_moved_targets_are_translated(earlier: Path) -> None:
    text = Path("outputs/vae/faces/config.yaml").read_text()
    assert "latentfaces.training.strategies.DDP" in text
    assert (
        open_run("outputs/vae/faces").config["trainer"]["strategy"]["_target_"]
        == MOVED["latentfaces.training.strategies.DDP"]
    )


def test_keys_that_no_longer_exist_are_ignored(earlier: Path) -> None:
    assert "num_workers: 0" in Path("outputs/vae/faces/config.yaml").read_text()
    assert "num_workers" not in open_run("outputs/vae/faces").config["data"]


def test_the_pipeline_loads_it(earlier: Path) -> None:
    pipeline = FacePipeline.load(find_run("latest", "ldm"))
    pipeline.guidance = NoGuidance()
    faces = pipeline.generate(2, seed=0, sampler=DPMpp2MSampler(4, eta=1.0))
    assert faces.shape == (2, 3, 16, 16)
    assert faces.float().std() > 1


def test_its_times_are_not_shifted_unless_its_training_was(earlier: Path) -> None:
    run = find_run("latest", "ldm")
    assert FacePipeline.load(run).sampler.shift == 1.0
    run.config["model"]["loss"]["time_sampler"]["mean"] = "auto"
    assert FacePipeline.load(run).sampler.shift == "auto"


def test_a_png_of_another_version_is_not_remade_otherwise(earlier: Path) -> None:
    assert "no complete metadata of this version" in refused("sample.py", "task=remake", "image=made/00000.png")


def test_its_training_resumes(earlier: Path, train: Command, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [
        "model=vae", "data=synthetic", "data.num_images=48", "data.resolution=16", "data.batch_size=8",
        "data.val_every=4", "model/autoencoder=tiny", "model.autoencoder.channels=4", "model.autoencoder.num_blocks=1",
        "model.autoencoder.attention=false", "logger=csv", "trainer.max_steps=6", "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1", "name=faces", "strategy=ddp", "trainer.accelerator=cpu", "resume=auto",
    ]  # fmt: skip
    before = checkpoint("vae/faces")
    train(*overrides)
    assert not dist.is_initialized()  # the command ends what strategy=ddp has started
    after = checkpoint("vae/faces")
    assert (before["global_step"], after["global_step"]) == (4, 6)
    assert "strategies" not in capsys.readouterr().out  # a moved class is no change of the config


def test_weights_and_checkpoints_of_another_network_name_the_version(earlier: Path) -> None:
    folder = Path("outputs/vae/faces/checkpoints")
    weights = torch.load(folder / "best_vae.pth", weights_only=True)
    weights["moved.weight"] = weights.pop(next(iter(weights)))
    torch.save(weights, folder / "best_vae.pth")
    with pytest.raises(UserError, match=r"of latentfaces before 0\.1\.0, this is"):
        find_run("latest", "vae").module("autoencoder", "best_vae")
    with pytest.raises(RuntimeError) as error:
        torch.nn.Linear(1, 1).load_state_dict({})
    assert "the version of its training" in str(explain(error.value))
