"""The commands of the wheel in an empty folder, and what their entry points import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT, SHORT, TINY_LDM, TINY_VAE
from PIL import Image


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and commands, and nothing else of the project."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "wheel", ROOT], check=True)
    (wheel,) = (folder / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], check=True)
    return folder / "site"


COMMANDS = """
import json, runpy, sys
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""
"""Runs the scripts of several commands in one process, which imports torch once."""


@pytest.mark.slow
def test_the_wheel_trains_samples_prepares_and_counts_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert (installed / "latentfaces" / "conf" / "train.yaml").exists()
    photos, home = tmp_path / "photos", tmp_path / "home"
    for folder in (photos, home):
        folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(photos / f"{number}.png")
    commands = [
        ["train", *TINY_VAE, *SHORT, "trainer.max_steps=2", "name=faces"],
        ["train", *TINY_LDM, *SHORT, "trainer.max_steps=2", "name=faces"],
        ["sample", "num_images=2", "output=made", "sampler.num_steps=2"],
        ["budget", "model=vae", "experiment=demo", "data.batch_size=2"],
        ["prepare", str(photos), "--resolution", "8"],
    ]
    scripts = json.dumps([[f"{installed}/bin/latentfaces-{name}", *arguments] for name, *arguments in commands])
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, scripts], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert said.index("outputs/ldm/faces") < said.index("made/grid.png\n") < said.index("Stage 1") < said.rindex("3 ")
    assert sorted(path.name for path in home.iterdir()) == ["data", "made", "outputs"]


def test_entry_points_import_no_torch() -> None:
    names = ("train", "sample", "prepare", "budget", "errors", "sweeps")
    modules = ", ".join(f"latentfaces.cli.{name}" for name in names)
    configs = ", ".join(f"latentfaces.config.{p.stem}" for p in (ROOT / "src/latentfaces/config").glob("[a-z]*.py"))
    script = f"import sys, {modules}, {configs}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_sampling_and_packing_import_no_lightning() -> None:
    script = "import sys, latentfaces.cli.launch_sample, latentfaces.data; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
