"""The commands at a size that tests can afford, and how to call them."""

import contextlib
import copy
import functools
import importlib
import io
import os
import pickle
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
from filelock import FileLock
from hydra._internal import defaults_list
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf, grammar_parser

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
LABELED = [*TINY_LDM, *SHORT, "init=faces", "model/augmentation=nonleaky", "data.labels=auto", "name=labeled"]
LABELED += ["model.labels=[smile,hair_color,age]"]
ADVERSARIAL = [
    "model/loss=adversarial",
    "model.loss.perceptual.net=squeeze",
    "model.adversary.start_step=2",
    "model.adversary.discriminator.channels=8",
    "model.adversary.discriminator.num_layers=1",
    "data.resolution=32",
]


def load_yaml(file: TextIO) -> Any:
    """`OmegaConf.load`, which parses the same text only once."""
    return pickle.loads(parse_yaml(file.read()))


@functools.cache
def parse_yaml(text: str) -> bytes:
    """Return the pickled config of a config file, which is the fastest to copy."""
    return pickle.dumps(OmegaConf.load(io.StringIO(text)))


PARSE, MAP = functools.cache(grammar_parser.parse), defaults_list._create_interpolation_map


def map_if_needed(overrides: Any, defaults: Any, self_added: bool) -> Any:
    """`_create_interpolation_map` of Hydra, where a list of defaults has interpolations."""
    return MAP(overrides, defaults, self_added) if any(d.is_interpolation() for d in defaults) else None


def share_sources(self: Any, delegate: Any) -> None:
    """`CachingConfigRepository.__init__` of Hydra, without a deep copy of the config store."""
    self.delegate, self.cache = copy.copy(delegate), {}


def compose_faster(patch: pytest.MonkeyPatch) -> None:
    """Let Hydra parse equal files and interpolations once, and share its config store: 53 ms less per command."""
    Plugins.instance()  # loads the modules below again, without setting them as attributes of their package
    for origin in ("file", "importlib_resources"):
        source = importlib.import_module(f"hydra._internal.core_plugins.{origin}_config_source")
        patch.setattr(source, "OmegaConf", SimpleNamespace(load=load_yaml))
    patch.setattr("omegaconf.base.parse", PARSE)
    patch.setattr(defaults_list, "_create_interpolation_map", map_if_needed)
    patch.setattr(CachingConfigRepository, "__init__", share_sources)


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
        compose_faster(patch)
        if not any(argument.startswith(("experiment=", "hydra.mode=")) for argument in arguments):
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # only experiments set hydra.mode: saves composing
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


def made_once(name: str, make: Callable[[Path], Any], factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the folder that `make` fills for all workers of pytest-xdist."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            done.touch()
    return shutil.copytree(folder, factory.mktemp(name) / "copy")


def labeled_in_copy(trained: Path, factory: pytest.TempPathFactory) -> Path:
    """Return a copy of `trained` with a run that knows three labels and started from one without labels."""

    def make(folder: Path) -> None:
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        trained_in(folder, LABELED)

    return made_once("labeled", make, factory)


def many_faces(factory: pytest.TempPathFactory) -> Path:
    """Return a workplace with a VAE of 400 drawn faces, 100 held out."""
    vae = [*TINY_VAE, *SHORT, "data.num_images=400", "name=faces"]
    return made_once("many", lambda folder: trained_in(folder, vae), factory)
