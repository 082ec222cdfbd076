"""The commands at a size that tests can afford, and how to call them."""

import contextlib
import importlib
import io
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]
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
ADVERSARIAL = [
    "model/loss=adversarial",
    "model.loss.perceptual.net=squeeze",
    "model.adversary.start_step=2",
    "model.adversary.discriminator.channels=8",
    "model.adversary.discriminator.num_layers=1",
    "data.resolution=32",
]


def run_command(name: str, *arguments: str, pictures: bool = False) -> None:
    """Run train.py, sample.py or a latentfaces-... command as the shell would, in this process.

    A failure is a SystemExit.

    Args:
        name: of the command.
        arguments: of the command.
        pictures: whether a training draws its curves and its page, which takes twice as long as those of the tests.
    """
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / name), *arguments])
        if name == "train.py" and not pictures:
            for drawn in ("fit.plot_losses", "fit.write_report", "callbacks.report.write_report"):
                patch.setattr(f"latentfaces.training.{drawn}", lambda *_: None)
        if name.startswith("latentfaces-"):
            importlib.import_module(f"latentfaces.cli.{name.removeprefix('latentfaces-')}").main()
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")


def refused(name: str, *arguments: str) -> str:
    """Return the error of a rejected train.py or sample.py. It must have no traceback."""
    said = io.StringIO()
    with pytest.raises(SystemExit) as exit_, contextlib.redirect_stderr(said):
        run_command(name, *arguments)
    assert exit_.value.code not in (0, None)
    assert "Traceback" not in said.getvalue()
    return said.getvalue()


def trained_in(folder: Path, *trainings: Sequence[str]) -> Path:
    """The folder, after these calls of train.py in it."""
    with contextlib.chdir(folder):
        for arguments in trainings:
            run_command("train.py", *arguments)
    return folder
