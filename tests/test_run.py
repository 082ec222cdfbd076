"""Runs as folders: which one is found, what a stored config may build, and weights that are not to be trusted."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from latentfaces.autoencoder import VAE
from latentfaces.diffusion import Denoiser, DiT, RectifiedFlow
from latentfaces.errors import UserError
from latentfaces.run import Run, build, find_run, open_run, runs_in

TINY_VAE = {
    "_target_": "latentfaces.autoencoder.VAE",
    "latent_channels": 2,
    "channels": 8,
    "multipliers": [1, 2],
    "num_blocks": 1,
    "attention": False,
}


def write_run(outputs: Path, name: str, finished_at: int | None = 1, stage: str = "vae", **config: Any) -> Path:
    """Write a run's folder; `finished_at` is when its result was written, None for a run that stopped."""
    folder = outputs / stage / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage": stage, "model": {"autoencoder": TINY_VAE}, **config}))
    if finished_at is not None:
        (folder / "result.json").write_text('{"val/loss": 0.25}')
        os.utime(folder / "result.json", (finished_at, finished_at))
    return folder


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all runs."""
    monkeypatch.chdir(tmp_path)
    return Path("outputs")


def test_latest_is_the_run_that_finished_last(outputs: Path) -> None:
    for name, finished_at in [("a", 100), ("b", 300), ("c", 200)]:
        write_run(outputs, name, finished_at)
    assert find_run("latest", "vae").folder.name == "b"


def test_latest_passes_over_runs_that_stopped(outputs: Path) -> None:
    write_run(outputs, "finished", 100)
    write_run(outputs, "stopped", None)
    assert find_run("latest", "vae").folder.name == "finished"


def test_latest_passes_over_runs_that_do_not_suit(outputs: Path) -> None:
    write_run(outputs, "wanted", 100, data={"resolution": 64})
    write_run(outputs, "newer", 200, data={"resolution": 32})
    found = find_run("latest", "vae", suits=lambda run: run.config["data"]["resolution"] == 64)
    assert found.folder.name == "wanted"


def test_latest_looks_only_at_its_stage(outputs: Path) -> None:
    write_run(outputs, "first", 100, stage="vae")
    write_run(outputs, "second", 200, stage="ldm")
    assert find_run("latest", "vae").folder.name == "first"
    assert find_run("latest", "ldm").stage == "ldm"


@pytest.mark.parametrize(("stage", "key"), [("vae", "vae"), ("ldm", "run")])
def test_no_finished_run_is_told_with_the_remedy(outputs: Path, stage: str, key: str) -> None:
    write_run(outputs, "stopped", None, stage=stage)
    with pytest.raises(UserError, match=rf"no finished run .*train\.py model={stage}.* {key}=FOLDER"):
        find_run("latest", stage)


def test_run_is_found_by_its_name_even_unfinished(outputs: Path) -> None:
    folder = write_run(outputs, "faces", None)
    run = find_run("faces", "vae")
    assert run.folder == folder
    assert not run.finished


def test_run_is_found_by_its_folder_anywhere(outputs: Path) -> None:
    folder = write_run(outputs / "elsewhere", "moved", 5)
    run = find_run(str(folder), "vae")
    assert run.folder == folder
    assert run.finished
    assert run.result() == {"val/loss": 0.25}


def test_unknown_name_is_told_with_the_names_there_are(outputs: Path) -> None:
    for name in ("beta", "alpha"):
        write_run(outputs, name)
    with pytest.raises(UserError, match=r"vae=gamma is neither .*Available: alpha, beta\."):
        find_run("gamma", "vae")
    with pytest.raises(UserError, match=r"run=gamma is neither .*There are no runs in .*/outputs/ldm\."):
        find_run("gamma", "ldm")


def test_folders_without_a_config_are_no_runs(tmp_path: Path) -> None:
    write_run(tmp_path, "run")
    (tmp_path / "vae" / "other").mkdir()
    assert [run.folder.name for run in runs_in(tmp_path / "vae")] == ["run"]
    with pytest.raises(UserError, match=r"other is not a run: it has no config\.yaml"):
        open_run(tmp_path / "vae" / "other")


@pytest.mark.parametrize("text", ["", "stage: [vae", "just words"])
def test_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path, "faces")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"faces.*config\.yaml|config\.yaml.*faces"):
        open_run(folder)


def test_config_builds_the_vae_it_describes() -> None:
    vae = build(TINY_VAE)
    assert isinstance(vae, VAE)
    assert (vae.latent_channels, vae.downsampling) == (2, 2)


def test_config_builds_parts_within_parts() -> None:
    network = {"_target_": "latentfaces.diffusion.DiT", "channels": 2, "width": 16, "depth": 1, "num_heads": 2}
    schedule = {"_target_": "latentfaces.diffusion.RectifiedFlow"}
    node = {"_target_": "latentfaces.diffusion.Denoiser", "network": network, "schedule": schedule}
    denoiser = build({"parts": [node, 3, "text", None]})["parts"][0]
    assert isinstance(denoiser, Denoiser)
    assert isinstance(denoiser.network, DiT)
    assert isinstance(denoiser.schedule, RectifiedFlow)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "os.mkdir",
        "torch.load",
        "builtins.eval",
        "eval",
        "latentfaces.run.open_run",
        "latentfaces.data.Photos",
        "latentfaces.autoencoder.vae.torch.load",
        "latentfaces.autoencoder.vae",
        "latentfaces.autoencoder.PerceptualDistance",  # which reads a file
        "latentfaces.autoencoder.__builtins__",
        "latentfaces.diffusion.__loader__",
        "",
    ],
)
def test_config_that_asks_for_anything_else_is_refused_by_name(target: str) -> None:
    with pytest.raises(UserError, match=re.escape(target) + ".*may not be named"):
        build({"_target_": target})


def test_stranger_hidden_deep_in_a_config_is_refused_before_it_runs(tmp_path: Path) -> None:
    marker = tmp_path / "hacked"
    stranger = {"_target_": "os.mkdir", "path": str(marker)}
    with pytest.raises(UserError, match=r"os\.mkdir"):
        build({**TINY_VAE, "multipliers": [1, {"deep": [stranger]}]})
    assert not marker.exists()


def test_weights_arrive_ready_for_evaluation(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "faces")
    trained = build(TINY_VAE)
    trained.latent_mean.fill_(7.0)
    torch.save(trained.state_dict(), folder / "checkpoints" / "best_vae.pth")
    vae = open_run(folder).module("autoencoder", "best_vae")
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in vae.state_dict().items())
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"faces/checkpoints/best_vae\.pth is missing"):
        open_run(write_run(tmp_path, "faces")).module("autoencoder", "best_vae")


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_weights_cut_short_are_named(tmp_path: Path, kept: int) -> None:
    folder = write_run(tmp_path, "faces")
    path = folder / "checkpoints" / "best_vae.pth"
    torch.save(build(TINY_VAE).state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"faces/checkpoints/best_vae\.pth .*damaged"):
        open_run(folder).module("autoencoder", "best_vae")


@pytest.mark.parametrize("change", [{"channels": 16}, {"attention": True}, {"multipliers": [1, 2, 2]}])
def test_weights_of_another_shape_are_named(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_run(tmp_path, "faces")
    torch.save(build({**TINY_VAE, **change}).state_dict(), folder / "checkpoints" / "best_vae.pth")
    with pytest.raises(UserError, match=r"faces/checkpoints/best_vae\.pth does not fit the config\.yaml"):
        open_run(folder).module("autoencoder", "best_vae")


@pytest.mark.parametrize("content", ["", '{"steps": 4', "\x00\x00", "[]"])
def test_a_result_that_was_cut_off_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    (tmp_path / "tuned.json").write_text(content)
    run = Run(tmp_path, {"stage": "vae"})
    assert not run.finished
    assert run.result() == {}
    assert run.tuned() is None
