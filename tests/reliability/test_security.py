"""No code from a file that is only to be read, no secret in a file that is written, no known hole in what is installed
(cases 40 to 42)."""

import json
import os
import re
import shutil
import subprocess
import threading
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.commands import ROOT, SHORT, TINY_LDM, TINY_VAE, Command, refused
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image
from PIL.PngImagePlugin import PngInfo

MARKER = "hacked"
VAE, LDM = Path("outputs/vae/faces"), Path("outputs/ldm/faces")
FEW = ["num_images=1", "sampler.num_steps=1"]
MORE = [*TINY_LDM, *SHORT, "name=more"]


class Hostile:
    """Something that makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Path(MARKER).absolute()),)


CALL = {"_target_": "os.mkdir", "path": MARKER}
"""Config that makes a folder when it is instantiated."""


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workplace with a finished run of each stage, to write into; no code may create the folder of code."""
    shutil.copytree(trained, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    yield tmp_path / "home"
    assert not Path(MARKER).exists()


def pickled(path: Path) -> None:
    """Put a hostile pickle there, in torch's format."""
    torch.save({"weight": Hostile()}, path)


def test_the_marker_tells_of_code_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickled(Path("hostile.pth"))
    torch.load("hostile.pth", **{"weights_only": False})
    assert Path(MARKER).is_dir()


def first_of(pattern: str) -> Path:
    return next(Path().glob(pattern))


def hostile_array(pattern: str) -> Path:
    """Put a pickled array into the place of another."""
    path = first_of(pattern)
    with path.open("wb") as file:
        np.save(file, np.array([Hostile()], dtype=object), **{"allow_pickle": True})
    return path


def hostile_weights(path: Path) -> Path:
    assert path.exists()
    pickled(path)
    return path


PICKLES: dict[str, tuple[Callable[[], Path], str, list[str]]] = {
    "the VAE of stage 2": (lambda: hostile_weights(VAE / "checkpoints/best_vae.pth"), "train.py", MORE),
    "the checkpoint": (
        lambda: hostile_weights(LDM / "checkpoints/last.ckpt"),
        "train.py",
        [*TINY_LDM, *SHORT, "name=faces", "trainer.max_steps=6", "resume=true"],
    ),
    "the denoiser": (lambda: hostile_weights(LDM / "checkpoints/best_denoiser.pth"), "sample.py", FEW),
    "the guide": (lambda: hostile_weights(LDM / "checkpoints/guide_denoiser.pth"), "sample.py", FEW),
    "a snapshot": (
        lambda: hostile_weights(max((LDM / "checkpoints/ema").iterdir())),
        "sample.py",
        [*FEW, "ema=0.1"],
    ),
    "a network for features": (
        lambda: hostile_weights(shutil.copy(VAE / "checkpoints/best_vae.pth", Path("network.pt"))),
        "sample.py",
        ["task=tune", "task.num_images=32", "task.features=network.pt"],
    ),
    "the pack": (
        lambda: hostile_array("data/*/images.npy"),
        "sample.py",
        ["task=reconstruct", "run=outputs/vae/faces"],
    ),
    "the latents": (lambda: hostile_array("data/*/latents-*.npy"), "train.py", MORE),
}


@pytest.mark.parametrize(("plant", "command", "arguments"), PICKLES.values(), ids=PICKLES.keys())
def test_case_40_a_hostile_pickle_is_refused_by_name_and_does_not_run(
    plant: Callable[[], Path], command: str, arguments: list[str], home: Path
) -> None:
    path = plant()
    said = refused(command, *arguments, *(["output=pictures"] if command == "sample.py" else []))
    assert path.name in said or str(path.parent) in said


def test_case_40_hostile_weights_of_the_perceptual_loss_do_not_run(home: Path) -> None:
    pickled(Path("squeezenet.pth"))
    perceptual = ["model/loss=perceptual", "model.loss.perceptual.net=squeeze"]
    said = refused("train.py", *TINY_VAE, *perceptual, "model.loss.perceptual.weights=squeezenet.pth", "name=sharp")
    assert "squeezenet.pth is not torchvision's" in said


def rewrite_config(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config))


CONFIGS: dict[str, tuple[Path, Callable[[dict[str, Any]], object], str, list[str]]] = {
    "the VAE of a picture": (LDM, lambda c: c["model"].update(autoencoder=CALL), "sample.py", FEW),
    "a part of the denoiser": (LDM, lambda c: c["model"]["denoiser"].update(schedule=CALL), "sample.py", FEW),
    "the VAE of stage 2": (VAE, lambda c: c["model"].update(autoencoder=CALL), "train.py", MORE),
    "deep in the VAE of stage 2": (
        VAE,
        lambda c: c["model"]["autoencoder"].update(multipliers=[1, {"deep": [CALL]}]),
        "train.py",
        MORE,
    ),
    "the data of stage 2": (VAE, lambda c: c.update(data={**c["data"], **CALL}), "train.py", MORE),
    "a class that is ours and reads files": (
        VAE,
        lambda c: c["model"]["autoencoder"].update(multipliers={"_target_": "latentfaces.run.open_run"}),
        "train.py",
        MORE,
    ),
}


@pytest.mark.parametrize(("run", "change", "command", "arguments"), CONFIGS.values(), ids=CONFIGS.keys())
def test_case_40_a_stored_config_that_asks_for_anything_else_is_refused_by_name(
    run: Path, change: Callable[[dict[str, Any]], object], command: str, arguments: list[str], home: Path
) -> None:
    rewrite_config(run, change)
    said = refused(command, *arguments)
    assert re.search(r"(os\.mkdir|latentfaces\.run\.open_run) may not be named by a stored config", said)


def test_case_40_a_stored_config_does_not_read_this_machines_secrets(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "correct-horse-battery")
    for run, command, arguments in ((VAE, "train.py", [*MORE, f"vae={VAE}"]), (LDM, "sample.py", [f"run={LDM}"])):
        rewrite_config(run, lambda config: config.update(pack="${oc.env:SOME_TOKEN}"))
        said = refused(command, *arguments)
        assert "config.yaml has interpolations" in said
        assert "correct-horse" not in said


def test_case_40_what_tune_left_runs_nothing(home: Path) -> None:
    from latentfaces.run import open_run

    found = {"guidance": CALL, "ema": None, "of": open_run(LDM).best_hash}
    (LDM / "tuned.json").write_text(json.dumps(found))
    assert "os.mkdir may not be named" in refused("sample.py", *FEW)


LIES = {
    "other weights": ({"weights": "0123456789ab-0123456789ab"}, "0123456789ab"),
    "a call": ({"settings": CALL}, "os.mkdir"),
    "a call deep in it": ({"settings": {"_target_": "latentfaces.tasks.Generate", "sampler": CALL}}, "os.mkdir"),
    "a call for guidance": ({"guidance": CALL}, "os.mkdir"),
    "a run that is not there": ({"run": "outputs/ldm/gone"}, "outputs/ldm/gone"),
    "too little": ({"settings": {"_target_": "latentfaces.tasks.Generate"}}, "do not fit this version"),
    "no settings": ({"settings": "nothing"}, "no complete metadata"),
    "no labels": ({"labels": [1]}, "no complete metadata"),
    "no guidance": ({"guidance": {"_target_": "latentfaces.autoencoder.VAE"}}, "do not fit this version"),
}


@pytest.mark.parametrize(("change", "clue"), LIES.values(), ids=LIES.keys())
def test_case_40_a_picture_that_lies_is_refused_and_runs_nothing(
    change: dict[str, Any], clue: str, home: Path, sample: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    sample(*FEW, "output=pictures")
    with Image.open("pictures/00000.png") as picture:
        text = json.loads(picture.text["latentfaces"])  # type: ignore[attr-defined]
        info = PngInfo()
        info.add_itxt("latentfaces", json.dumps(text | change))
        picture.save("face.png", pnginfo=info)
    assert clue in refused("sample.py", "task=remake", "image=face.png", "output=again")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server that has a hostile run; its address and its requests."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            asked.append(self.path)

    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    pickled(tmp_path / "last.ckpt")
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_address[1]}", asked
    served.shutdown()
    thread.join()
    served.server_close()


LINKS = {
    "run": ("sample.py", []),
    "image": ("sample.py", ["task=reconstruct"]),
    "task.features": ("sample.py", ["task=evaluate"]),
    "vae": ("train.py", ["model=ldm"]),
    "data.root": ("train.py", ["model=vae", "data=folder"]),
    "model.loss.perceptual.weights": ("train.py", ["model=vae", "model/loss=perceptual"]),
    "run_dir": ("train.py", ["model=vae"]),
}


@pytest.mark.parametrize("key", LINKS)
def test_case_40_a_link_is_refused_and_nothing_is_asked_of_it(
    key: str, home: Path, server: tuple[str, list[str]]
) -> None:
    (address, asked), (command, arguments) = server, LINKS[key]
    said = refused(command, *arguments, f"{key}={address}/last.ckpt")
    assert f"{key} is a link, and links are not loaded. Download the file and give its path." in said
    assert asked == []


def test_case_40_hydras_own_unpickling_is_refused(home: Path) -> None:
    pickled(Path("config.pickle"))
    for option in ("--experimental-rerun", "--exp"):  # argparse accepts abbreviations
        assert "--experimental-rerun unpickles a file" in refused("train.py", option, "config.pickle")


def tracked(*kinds: str) -> dict[Path, str]:
    """The text of the project's own files."""
    tops = ["src", "conf", "benchmarks", "notebooks", "tests", "train.py", "sample.py", "README.md", "docs"]
    paths = [path for top in tops for path in ([ROOT / top] if (ROOT / top).is_file() else (ROOT / top).rglob("*"))]
    return {path: path.read_text() for path in paths if path.suffix in kinds}


def test_case_40_nothing_in_the_tree_loads_without_care() -> None:
    careless = ["weights_only=False", "allow_pickle=True", "yaml.load(", "pickle.load(", "dill", "joblib"]
    found = [
        f"{path}: {word}"
        for path, text in tracked(".py", ".ipynb", ".md", ".yaml").items()
        if path != Path(__file__)
        for word in [*careless, *(["eval(", "exec("] if "tests" not in path.parts else [])]
        if re.search(rf"(?<![\w.]){re.escape(word)}", text)
    ]
    assert found == []
    for path, text in tracked(".py").items():
        if "src" in path.parts:
            for call in re.findall(r"torch\.load\([^\n]*", text):
                assert "weights_only=True" in call, f"{path}: {call}"


SECRET = "0123456789abcdef0123456789abcdef01234567"


def test_case_41_secrets_in_the_environment_are_nowhere_in_a_run(
    train: Command, sample: Command, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    short = [*SHORT[1:], "trainer.max_steps=2"]
    train(*TINY_VAE, *short, "name=faces", "logger=wandb")
    train(*TINY_LDM, *short, "name=faces", "logger=csv")
    sample(*FEW)
    assert list(Path().glob("outputs/vae/faces/wandb/*/*.wandb"))
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err
    for path in workplace.rglob("*"):
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


TYPED = [
    "+logger.wandb.api_key={}",
    "++logger.wandb.settings.api_key={}",
    "+data.kaggle_key={}",
    "+data.token={}",
    "+hydra.job.env_set.WANDB_API_KEY={}",
]


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("sweep", [False, True])
def test_case_41_a_secret_that_is_typed_is_refused_before_anything_is_named_after_it(
    typed: str, sweep: bool, workplace: Path
) -> None:
    more = ["-m", "seed=1,2", "hydra.sweep.subdir=${hydra.job.override_dirname}"] if sweep else []
    said = refused("train.py", *TINY_VAE, *SHORT, typed.format(SECRET), *more)
    assert "Put the secret into an environment variable" in said
    assert SECRET not in said
    assert not list(workplace.iterdir())
    assert "would be written" in refused("sample.py", typed.format(SECRET))


def test_case_41_a_secret_in_a_config_of_ones_own_is_refused(workplace: Path) -> None:
    (workplace / "mine" / "experiment").mkdir(parents=True)
    mine = workplace / "mine" / "experiment" / "mine.yaml"
    mine.write_text(f"# @package _global_\nlogger:\n  csv:\n    api_token: {SECRET}\n")
    said = refused("train.py", *TINY_VAE, *SHORT, "experiment=mine", "name=faces", "--config-dir", "mine")
    assert "logger.csv.api_token would be written into the run folder" in said
    assert SECRET not in said
    assert not list(workplace.glob("outputs/*/*"))


def locked() -> dict[str, tuple[Version, list[str]]]:
    """Version and hashes of each package in requirements.lock."""
    found = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text()):
        if not entry.startswith("#"):
            requirement = Requirement(entry.partition(" \\")[0])
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            found[requirement.name] = Version(specifier.version), re.findall(r"--hash=sha256:[0-9a-f]{64}\b", entry)
    return found


def test_case_42_every_package_is_locked_with_hashes_and_none_is_known_to_be_bad() -> None:
    packages = locked()
    assert len(packages) > 50
    assert [name for name, (_, hashes) in packages.items() if not hashes] == []
    assert packages["torch"][0] >= Version("2.6")  # CVE-2025-32434: before, weights_only ran code
    assert packages["hydra-core"][0] >= Version("1.3.8")
    assert packages["lightning"][0] not in (Version("2.6.2"), Version("2.6.3"))  # GHSA-w37p-236h-pfx3: stole secrets
    assert "--require-hashes --requirement requirements.lock" in (ROOT / "Makefile").read_text()


def test_case_42_nor_can_what_pyproject_allows_be_known_to_be_bad() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name, bad in (("lightning", "2.6.2"), ("lightning", "2.6.3"), ("torch", "2.5.1"), ("hydra-core", "1.3.7")):
        assert bad not in allowed[name]
    versions = {name: version for name, (version, _) in locked().items()}
    assert [name for name, specifier in allowed.items() if versions[name] not in specifier] == []


@pytest.mark.parametrize(
    ("network", "finding", "status", "clue"),
    [(True, True, 2, "found"), (True, False, 0, "audited"), (False, True, 0, "cannot be reached")],
)
def test_case_42_a_finding_of_the_audit_fails_the_check_and_a_missing_network_does_not(
    network: bool, finding: bool, status: int, clue: str, tmp_path: Path
) -> None:
    for name, code in (("python", 1 - network), ("pip-audit", int(finding))):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {'found' if finding else 'audited'}\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    command = ["make", "--old-file=.venv/.installed", "audit", f"BIN={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert clue in done.stdout
