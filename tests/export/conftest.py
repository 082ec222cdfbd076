"""An exported run."""

import contextlib
import shutil
from pathlib import Path

import pytest
from helpers.commands import run_command


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with the runs of `trained`, and the model folder `out` of the run of stage 2."""
    home = shutil.copytree(trained, tmp_path_factory.mktemp("export") / "home")
    with contextlib.chdir(home):
        run_command("latentfaces-export", "run=faces", "to=out")
    return home
