"""An exported run."""

import contextlib
import shutil
from pathlib import Path

import pytest
from helpers.commands import made_once, run_command


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with the runs of `trained`, and the model folder `out` of the run of stage 2."""

    def export(home: Path) -> None:
        shutil.copytree(trained, home, dirs_exist_ok=True)
        with contextlib.chdir(home):
            run_command("latentfaces-export", "run=faces", "to=out")

    return made_once("exported", export, tmp_path_factory)
