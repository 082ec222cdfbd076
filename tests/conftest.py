"""What several test files share."""

from functools import partial
from pathlib import Path

import pytest
from commands import Command, run_command


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


@pytest.fixture
def train(workplace: Path) -> Command:
    """`train("model=vae", ...)` in the workplace, in this process."""
    return partial(run_command, "train.py")


@pytest.fixture
def sample(workplace: Path) -> Command:
    """`sample("run=faces", ...)` in the workplace, in this process."""
    return partial(run_command, "sample.py")
