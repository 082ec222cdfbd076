"""Model folders: the same faces with few packages, and nothing that runs."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import run_command
from safetensors.torch import load_file

from latentfaces.autoencoder.pretrained import wrap
from latentfaces.errors import UserError
from latentfaces.export import folder as module
from latentfaces.export.folder import config_for, export, write_vae
from latentfaces.marks import GENERATED
from latentfaces.model_folder import ModelFolder, open_model
from latentfaces.pipeline import FacePipeline
from latentfaces.run import Run, open_run
from latentfaces.tasks.identify import read_source

NAMES = [(0, 0), (5, 3)]
CALL = {"_target_": "os.mkdir", "path": "pwned"}
BARE = """
import importlib.metadata, re, sys
from importlib.machinery import PathFinder

def needed(names):
    # The packages of these names and what they depend on.
    found, open_ = set(), list(names)
    while open_:
        name = re.sub(r"[-_.]+", "-", open_.pop()).lower()
        try:
            requires = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            open_ += [re.match(r"[\\w.-]+", r)[0] for r in requires if "extra ==" not in r]
    return found

installed = needed(["torch", "safetensors", "pillow", "numpy"])
modules = {
    module for module, owners in importlib.metadata.packages_distributions().items()
    if any(re.sub(r"[-_.]+", "-", owner).lower() in installed for owner in owners)
} | {"latentfaces"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        return super().find_spec(name, path, target) if top in modules or top in sys.stdlib_module_names else None

sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not PathFinder] + [Finder]
import numpy as np
from latentfaces.pipeline import FacePipeline
pipeline = FacePipeline.from_pretrained(sys.argv[1], device="cpu")
draw = pipeline.draws([(0, 0), (5, 3)])
np.save(sys.argv[2], pipeline.sample(draw(), pipeline.sampler, draw).numpy())
try:
    import lightning
except ModuleNotFoundError:
    print("bare")
"""


def latents(pipeline: FacePipeline) -> np.ndarray:
    draw = pipeline.draws(NAMES)
    return pipeline.sample(draw(), pipeline.sampler, draw).cpu().numpy()


def test_four_packages_make_the_same_latents(exported: Path, tmp_path: Path) -> None:
    arguments = [exported / "out", tmp_path / "latents.npy"]
    done = subprocess.run([sys.executable, "-c", BARE, *arguments], capture_output=True, text=True)
    assert done.stdout == "bare\n", done.stderr
    ours = FacePipeline.load(exported / "outputs/ldm/faces", device="cpu")
    assert np.abs(np.load(tmp_path / "latents.npy") - latents(ours)).max() <= 1e-6


def test_a_folder_has_every_part_and_no_pickle(exported: Path) -> None:
    files = {path.name: path.read_bytes() for path in (exported / "out").iterdir()}
    weights = {f"{name}.safetensors" for name in ("vae", "denoiser", "guide")}
    onnx = {"decoder.onnx", "denoiser.onnx", "sampling.json", "sample_onnx.py"}
    assert set(files) == {"README.md", "config.json", "grid.png", *weights, *onnx}
    for name, data in files.items():
        assert not data.startswith((b"\x80", b"PK")), name  # a pickle, and a zip as torch.save writes it
    assert read_source(exported / "out" / "grid.png") == GENERATED
    assert str(exported).encode() not in b"".join(files.values())


def test_tuned_settings_come_along(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_onnx", lambda *_: None)
    folder = shutil.copytree(exported / "outputs/ldm/faces", tmp_path / "faces")
    tuned = {
        "guidance": {"_target_": "latentfaces.diffusion.AutoGuidance", "weight": 2.5, "start": 0.9},
        "sampler": {"_target_": "latentfaces.diffusion.HeunSampler", "num_steps": 3},
        "ema": None,
        "of": open_run(folder).best_hash,
    }
    (folder / "tuned.json").write_text(json.dumps(tuned))
    out = export(open_run(folder), tmp_path / "out")
    loaded = FacePipeline.from_pretrained(out, device="cpu")
    assert (type(loaded.sampler).__name__, loaded.sampler.num_steps) == ("HeunSampler", 3)
    assert vars(loaded.guidance) == {"weight": 2.5, "start": 0.9, "end": 0.0}
    assert np.abs(latents(loaded) - latents(FacePipeline.load(folder, device="cpu"))).max() <= 1e-6
    with pytest.raises(UserError, match=r"ema=0.1 has no effect on .*out, which has one average"):
        FacePipeline.load(open_model(out), ema=0.1)


def test_a_run_of_stage_1_gives_its_vae(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_onnx", lambda *_: None)
    out = export(open_run(exported / "outputs/vae/faces"), tmp_path / "vae")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "vae.safetensors"]
    images = torch.rand(2, 3, 16, 16)
    ours, loaded = FacePipeline.load(exported / "outputs/vae/faces"), FacePipeline.from_pretrained(out)
    assert torch.equal(loaded.reconstruct(images), ours.reconstruct(images))


def test_a_vae_of_diffusers_becomes_a_folder_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    options = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model = diffusers.AutoencoderKL(**options, **blocks)
    config, vae = wrap("AutoencoderKL", dict(model.config), model.state_dict(), "diffusers:/home/me/vae#sub", None)
    vae.latent_mean += 0.1
    pipeline = FacePipeline(vae.eval().requires_grad_(False), None, 16, "cpu")
    write_vae(pipeline, tmp_path)
    run = Run(tmp_path, {"stage": "vae", "model": {"autoencoder": config}})
    (tmp_path / "config.json").write_text(json.dumps(config_for(run, pipeline)))
    assert json.loads((tmp_path / "config.json").read_text())["model"]["autoencoder"]["source"] == "diffusers:vae#sub"
    images = torch.rand(1, 3, 16, 16)
    loaded = FacePipeline.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(loaded.encode(images), pipeline.encode(images))
    stock = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert torch.equal(stock.encode(images).latent_dist.mean, vae.encode(images).mean)


def pickled(path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, ("pwned",)

    path.write_bytes(pickle.dumps(Hostile()))


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return write


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled weights": (lambda f: pickled(f / "denoiser.safetensors"), r"denoiser.safetensors is missing or damaged"),
    "a header of 2^60 bytes": (
        lambda f: (f / "vae.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"),
        r"vae.safetensors is missing or damaged",
    ),
    "no weights": (lambda f: (f / "vae.safetensors").unlink(), r"vae.safetensors is missing or damaged"),
    "weights of another network": (
        lambda f: shutil.copy(f / "vae.safetensors", f / "denoiser.safetensors"),
        r"denoiser.safetensors .* does not fit",
    ),
    "a call": (changed(lambda c: c["model"].update(autoencoder=CALL)), r"os.mkdir may not be named"),
    "a call in a part that is not built": (changed(lambda c: c.update(more=[CALL])), r"os.mkdir may not be named"),
    "a call as sampler": (changed(lambda c: c["sampling"].update(sampler=CALL)), r"os.mkdir may not be named"),
    "a task as denoiser": (
        changed(lambda c: c["model"].update(denoiser={"_target_": "latentfaces.tasks.Generate"})),
        r"does not fit config.json",
    ),
    "an interpolation": (changed(lambda c: c.update(name="${oc.env:HOME}")), r"is not the config of a model folder"),
    "a resolution that is text": (changed(lambda c: c["data"].update(resolution="16")), r"not the config of a model"),
    "another format": (changed(lambda c: c.update(format=99)), r"not of format 1"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), r"not the config of a model folder"),
    "a deep config": (lambda f: (f / "config.json").write_text("[" * 10**5), r"not the config of a model folder"),
    "a large config": (lambda f: (f / "config.json").write_text(" " * 2**21), r"more than 1,048,576 bytes"),
    "no config": (lambda f: (f / "config.json").unlink(), r"it has no config.json"),
    "a sampler with other arguments": (
        changed(lambda c: c["sampling"]["sampler"].update(num_steps=0)),
        r"num_steps=0 must be at least 1",
    ),
    "guidance as sampler": (
        changed(lambda c: c["sampling"].update(sampler=c["sampling"]["guidance"])),
        r"no sampler, or no guidance",
    ),
    "a network as labels": (
        changed(lambda c: c["model"].update(conditioning={"_target_": "latentfaces.autoencoder.VAE"})),
        r"no labels",
    ),
    "no sampler": (changed(lambda c: c["sampling"].pop("sampler")), r"not the config of a model folder"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_is_one_line_and_runs_nothing(
    kind: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, clue = HOSTILE[kind]
    folder = shutil.copytree(exported / "out", tmp_path / "out", ignore=shutil.ignore_patterns("*.onnx"))
    damage(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=clue) as raised:
        FacePipeline.from_pretrained(folder)
    assert "\n" not in str(raised.value)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("place", ["../me/faces", "me", "https://host/me/faces", "/etc/passwd", "me/faces/../x", ".."])
def test_a_place_that_is_no_id_is_asked_of_nobody(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"is neither a folder nor an ID of the hub|it has no config\.json"):
        FacePipeline.from_pretrained(place)
    with pytest.raises(UserError, match=r"pip install 'latentfaces\[hub\]'"):
        FacePipeline.from_pretrained("me/faces")


def test_a_revision_of_the_hub_is_loaded(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"]))
        return str(exported / "out")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert FacePipeline.from_pretrained("me/faces@v1").denoiser is not None
    assert FacePipeline.from_pretrained("me/faces").denoiser is not None
    assert asked == [("me/faces", "v1"), ("me/faces", None)]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"me/faces cannot be downloaded \(division by zero\)"):
        FacePipeline.from_pretrained("me/faces")


def test_a_folder_with_files_is_kept_and_a_failed_export_leaves_nothing(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(exported / "outputs/ldm/faces")
    before = load_file(exported / "out" / "vae.safetensors").keys()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match=r"to=\. is the current folder"):
        export(run, Path())
    (tmp_path / "empty").rmdir()
    with pytest.raises(UserError, match=r"out already exists. Choose another folder."):
        export(run, exported / "out")
    assert load_file(exported / "out" / "vae.safetensors").keys() == before

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_onnx", fail)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported)
    for arguments, clue in {
        (): "to is missing",
        ("to=new", "run=gone"): "gone",
        ("to=new", "dry_run=true"): "no effect without push",
        ("to=new", "push=faces"): "push=faces is not an ID",
        ("to=new", "tp=3"): "tp",
        ("to=out",): "already exists",
    }.items():
        with pytest.raises(SystemExit):
            run_command("latentfaces-export", *arguments)
        said = capsys.readouterr().err
        assert clue in said
        assert "Traceback" not in said
    assert not Path("new").exists()


def test_too_little_memory_is_one_line(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] not enough memory: can't allocate memory: you tried 8 GB")

    monkeypatch.chdir(exported)
    monkeypatch.setattr(FacePipeline, "load", fail)
    with pytest.raises(SystemExit):
        run_command("latentfaces-export", "run=faces", "to=new")
    assert capsys.readouterr().err.startswith("error: Out of memory. [enforce fail] not enough memory")


def test_a_model_folder_is_a_run_to_its_reader(exported: Path) -> None:
    model = open_model(exported / "out")
    assert isinstance(model, ModelFolder)
    assert (model.stage, model.has_guide, model.has_snapshots) == ("ldm", True, False)
