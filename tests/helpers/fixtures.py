"""Fixtures that several test files share."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, Command, compose_faster, made_once, run_command, trained_in
from helpers.forked import Forker
from helpers.kaggle_stand_in import Kaggle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _compose_faster() -> Iterator[None]:
    """Faster compositions outside of commands."""
    with pytest.MonkeyPatch.context() as patch:
        compose_faster(patch)
        yield


@pytest.fixture(scope="session")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for the smallest perceptual network."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a finished run of each stage, to read; who writes into it takes a copy."""
    both = ([*stage, *SHORT, "name=faces"] for stage in (TINY_VAE, TINY_LDM))
    return made_once("trained", lambda folder: trained_in(folder, *both), tmp_path_factory)


@pytest.fixture
def trained_vae(trained: Path, workplace: Path) -> None:
    """The run `faces` of stage 1 and its data, in the workplace."""
    shutil.copytree(trained, workplace, ignore=shutil.ignore_patterns("ldm", "latents-*"), dirs_exist_ok=True)


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch) -> Kaggle:
    """A client in the place of Kaggle's."""
    client = Kaggle()
    client.install(monkeypatch)
    return client


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


@pytest.fixture
def train(workplace: Path) -> Command:
    """`train("model=vae", ...)` in the workplace, in this process; with `pictures=True`, also its curves and page."""
    return partial(run_command, "train.py")


@pytest.fixture
def sample(workplace: Path) -> Command:
    """`sample("run=faces", ...)` in the workplace, in this process."""
    return partial(run_command, "sample.py")


@pytest.fixture(scope="session")
def warm() -> None:
    """The process with all imports done that commands are forked from."""
    Forker.warm_up()


@pytest.fixture
def fork(warm: None, workplace: Path) -> Iterator[Forker]:
    """`fork.run("model=vae", ...)`, exit status and output of train.py in the workplace; `fork.start` does not wait.

    Each command has a process of its own, that can be killed.
    """
    forker = Forker(workplace)
    yield forker
    forker.end()
