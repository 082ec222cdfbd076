"""What several test files share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[1]
Command = Callable[..., None]

TINY_DATA = ["data=synthetic", "data.num_images=48", "data.resolution=16", "data.batch_size=8", "data.val_every=4"]
TINY_VAE = [
    "model=vae",
    *TINY_DATA,
    "model/autoencoder=tiny",
    "model.autoencoder.channels=8",
    "model.autoencoder.num_blocks=1",
    "model.autoencoder.attention=false",
]
TINY_LDM = [
    "model=ldm",
    "model/denoiser=unet_s",
    "model.denoiser.network.width=16",
    "model.denoiser.network.multipliers=[1,2]",
    "model.denoiser.network.num_blocks=1",
    "model.denoiser.network.attention_levels=[]",
    "model.sampler.num_steps=2",
    "data.batch_size=8",
]
SHORT = ["logger=csv", "trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return tmp_path


def run_command(main: Callable[[], None], name: str, arguments: tuple[str, ...]) -> None:
    """Call a command's main as the shell would; a failure is a SystemExit."""
    before = sys.argv
    sys.argv = [str(ROOT / name), *arguments]
    GlobalHydra.instance().clear()
    try:
        main()
    finally:
        sys.argv = before


@pytest.fixture
def train(workplace: Path) -> Command:
    """`train("model=vae", ...)` in the workplace, in this process."""
    import train as command

    return lambda *arguments: run_command(command.main, "train.py", arguments)


@pytest.fixture
def sample(workplace: Path) -> Command:
    """`sample("run=faces", ...)` in the workplace, in this process."""
    import sample as command

    return lambda *arguments: run_command(command.main, "sample.py", arguments)
