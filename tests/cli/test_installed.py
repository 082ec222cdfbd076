"""The commands of the wheel in an empty folder, and what their entry points import."""

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


def command(installed: Path, folder: Path, name: str, *arguments: str) -> str:
    """Run a command of the wheel in a folder. Return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [installed / "bin" / name, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_trains_both_stages_and_samples_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert (installed / "latentfaces" / "conf" / "train.yaml").exists()
    command(installed, tmp_path, "latentfaces-train", *TINY_VAE, *SHORT, "trainer.max_steps=2", "name=faces")
    command(installed, tmp_path, "latentfaces-train", *TINY_LDM, *SHORT, "trainer.max_steps=2", "name=faces")
    said = command(installed, tmp_path, "latentfaces-sample", "num_images=2", "output=made", "sampler.num_steps=2")
    assert said.strip().endswith("made/grid.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "made", "outputs"]


@pytest.mark.slow
def test_the_wheel_prepares_and_counts_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    assert "3 " in command(installed, tmp_path, "latentfaces-prepare", "photos", "--resolution", "8")
    said = command(installed, tmp_path, "latentfaces-budget", "model=vae", "experiment=demo", "data.batch_size=2")
    assert "Stage 1" in said


def test_entry_points_import_no_torch() -> None:
    names = ("train", "sample", "prepare", "budget", "errors", "sweeps")
    modules = ", ".join(f"latentfaces.cli.{name}" for name in names)
    configs = ", ".join(f"latentfaces.config.{p.stem}" for p in (ROOT / "src/latentfaces/config").glob("[a-z]*.py"))
    script = f"import sys, {modules}, {configs}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_sampling_and_packing_import_no_lightning() -> None:
    script = "import sys, latentfaces.cli.launch_sample, latentfaces.data; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
