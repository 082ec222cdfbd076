"""init=RUN: training from the weights of an earlier run."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.commands import ADVERSARIAL, SHORT, TINY_LDM, TINY_VAE, refused, run_command
from helpers.forked import Forker
from helpers.states import assert_equal, assert_same_end, checkpoint

from latentfaces.diffusion import Denoiser, DiT, RectifiedFlow
from latentfaces.run import find_run
from latentfaces.training.trainable import freeze

OTHER_DATA = ["data=synthetic", "data.num_images=40", "data.val_every=4", "data.batch_size=8"]
LDM = ["model=ldm", "init=faces", *OTHER_DATA, *SHORT, "model.sampler.num_steps=2"]
VAE = ["model=vae", "init=faces", *OTHER_DATA, *SHORT]
STILL = ["model.optimizer.lr=1e-60", "trainer.max_steps=1"]  # too small to change a float32


@pytest.fixture
def place(trained: Path, workplace: Path) -> Path:
    """A workplace with a finished run of each stage, named "faces"."""
    shutil.copytree(trained / "outputs", workplace / "outputs")
    return workplace


def exported(run: str, name: str) -> dict[str, torch.Tensor]:
    return torch.load(Path("outputs") / run / "checkpoints" / f"{name}.pth", weights_only=True)


@pytest.mark.parametrize(("stage", "options", "file"), [("vae", VAE, "best_vae"), ("ldm", LDM, "best_denoiser")])
def test_training_starts_from_the_exported_weights(
    stage: str, options: list[str], file: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command("train.py", *options, *STILL, "model.optimizer.weight_decay=0", "name=new")
    before, after = exported(f"{stage}/faces", file), checkpoint(f"{stage}/new")["state_dict"]
    prefix = "autoencoder." if stage == "vae" else "denoiser."
    own = {key.removeprefix(prefix): value for key, value in after.items() if key.startswith(prefix)}
    for buffer in ("latent_mean", "latent_std"):  # measured on the images of this run
        own.pop(buffer, None), before.pop(buffer, None)
    assert_equal(own, before)
    said = capsys.readouterr().out
    assert f"init=outputs/{stage}/faces: {len(exported(f'{stage}/faces', file))} weights taken, 0 start fresh\n" in said
    assert checkpoint(f"{stage}/new")["global_step"] == 1
    config, earlier = find_run("new", stage).config, find_run("faces", stage).config
    node = "autoencoder" if stage == "vae" else "denoiser"
    assert config["model"][node] == earlier["model"][node]  # a width of 16 that this command does not repeat
    assert config["data"]["resolution"] == 16
    if stage == "ldm":
        assert_equal(exported("ldm/new", "best_vae"), exported("ldm/faces", "best_vae"))


def test_other_weights_start_fresh_and_another_resolution_works(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["experiment=few", "data.resolution=32", "trainer.max_epochs=1", "model.lr_schedule.warmup_steps=1"]
    more += ["model/augmentation=nonleaky", "model.denoiser.network.dropout=0.1"]
    run_command("train.py", *LDM, *more, "vae=faces", "name=new")
    said = capsys.readouterr().out
    assert "weights taken, 1 start fresh (network.embed_label.weight)" in said
    network = find_run("new", "ldm").config["model"]["denoiser"]["network"]
    assert (network["width"], network["dropout"], network["label_channels"]) == (16, 0.1, 8)
    assert find_run("new", "ldm").config["vae"] == "outputs/vae/faces"


def test_the_noise_schedule_and_its_times_are_those_of_the_earlier_run(place: Path) -> None:
    edm = ["model/schedule=edm", "model/time_sampler=log_normal", "model/weighting=edm"]
    run_command("train.py", *TINY_LDM, *SHORT, *edm, "name=edm")
    run_command("train.py", *LDM, *STILL, "init=edm", "name=new")
    model = find_run("new", "ldm").config["model"]
    assert model["denoiser"]["schedule"]["_target_"].endswith(".EDM")
    assert model["loss"]["time_sampler"]["_target_"].endswith(".LogNormalNoise")


REFUSED = {
    "another width": (
        [*LDM, "model.denoiser.network.width=32"],
        "init=outputs/ldm/faces has model.denoiser.network.width=16, and this run 32.",
    ),
    "a width that is the default": ([*LDM, "model.denoiser.network.width=64"], "width=16, and this run 64."),
    "another network": ([*LDM, "model/denoiser=tiny"], "UNet, and this run latentfaces.diffusion.DiT."),
    "another schedule": ([*LDM, "model/schedule=vp_cosine"], "schedule._target_"),
    "a VAE of other channels": ([*LDM, "vae=wide"], "network.channels=4, and this run 8."),
    "another VAE": ([*VAE, "model.autoencoder.channels=16"], "model.autoencoder.channels=8, and this run 16."),
    "no such run": ([*LDM, "init=nobody"], "init=nobody is neither a run's folder nor a name in outputs/ldm."),
    "no such run to distill": (["model=fast", *SHORT, "run=nobody"], "error: run=nobody is neither a run's folder"),
    "the other stage": ([*LDM, "init=outputs/vae/faces"], "is a run of model=vae. Choose one of model=ldm."),
    "parts of nothing": ([*TINY_VAE, *SHORT, "trainable=norms"], "trainable=norms has no effect without init=RUN."),
    "no such parts": ([*LDM, "trainable=first"], "trainable=first is invalid"),
    "a decoder of stage 2": ([*LDM, "trainable=decoder"], "trainable=decoder is for model=vae. Use trainable=all,"),
    "a frozen last layer": ([*VAE, *ADVERSARIAL, "trainable=norms"], "Use trainable=last"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_mistakes_get_one_line_and_leave_nothing(mistake: str, place: Path) -> None:
    options, clue = REFUSED[mistake]
    if "vae=wide" in options:
        config = yaml.safe_load(Path("outputs/vae/faces/config.yaml").read_text())
        config["model"]["autoencoder"]["latent_channels"] = 8
        Path("outputs/vae/wide").mkdir()
        Path("outputs/vae/wide/config.yaml").write_text(yaml.safe_dump(config))
    said = refused("train.py", *options, "name=wrong")
    assert clue in said
    assert said.count("\n") == 1
    assert not list(Path("outputs").glob("*/wrong"))


@pytest.mark.parametrize(
    ("stage", "trainable"),
    [("vae", "norms"), ("vae", "last"), ("vae", "decoder"), ("ldm", "norms"), ("ldm", "last")],
)
def test_frozen_weights_stay_and_the_others_change(stage: str, trainable: str, place: Path) -> None:
    options = VAE if stage == "vae" else LDM
    run_command("train.py", *options, f"trainable={trainable}", "name=new")
    file, prefix = ("best_vae", "autoencoder.") if stage == "vae" else ("best_denoiser", "denoiser.")
    before, after = exported(f"{stage}/faces", file), checkpoint(f"{stage}/new")["state_dict"]
    changed = {name for name in before if not torch.equal(before[name], after[prefix + name])} - {
        "latent_mean", "latent_std",
    }  # fmt: skip
    if trainable == "norms":
        expected = {name for name in before if "norm" in name or "scale_shift" in name or "head.0." in name}
    elif trainable == "decoder":
        expected = {name for name in before if name.startswith("decoder.")}
    elif stage == "vae":  # three of eight blocks
        expected = {name for name in before if name.startswith("decoder.") and "stem" not in name}
        expected -= {name for name in before if "middle.0" in name}
    else:  # three of eight blocks
        expected = {name for name in before if name.startswith(("network.up", "network.norm", "network.out"))}
        expected -= {name for name in before if "up.0" in name}
    assert changed <= expected, changed - expected
    assert len(changed) > 0.8 * len(expected), expected - changed  # outputs that start at 0 stop some gradients


def test_parts_of_a_transformer() -> None:
    network = Denoiser(DiT(4, 16, 4, 2, auxiliary_depth=1, label_channels=8), RectifiedFlow())
    freeze(network, "last")
    trained = {name.split(".block")[0] for name, p in network.named_parameters() if p.requires_grad}
    blocks = {name.split(".")[2] for name, p in network.named_parameters() if p.requires_grad and ".blocks." in name}
    assert blocks == {"2", "3"}
    assert not any(name.startswith(("network.embed_patch", "network.embed_time")) for name in trained)
    for part in ("head.out", "auxiliary_head.out", "embed_label"):
        assert f"network.{part}.weight" in trained
    freeze(network, "norms")
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert "network.blocks.0.modulation.weight" in trained
    assert "network.blocks.0.attention.query_norm.weight" in trained
    assert "network.head.modulation.bias" in trained
    assert not any(part in name for name in trained for part in ("qkv", "feed_forward.", "network.head.out"))


def test_a_killed_run_resumes_exactly_without_the_earlier_run(warm: None, fork: Forker, place: Path) -> None:
    settings = [*LDM, "experiment=few", "trainable=norms", "trainer.max_steps=9", "model.optimizer.lr=1e-3"]
    settings += ["model/augmentation=nonleaky", "callbacks.last.every_n_train_steps=2", "trainer.val_check_interval=3"]
    assert fork.run(*settings, "name=straight")[0] == 0
    kill = ["+callbacks.kill._target_=helpers.probes.SignalAt", "+callbacks.kill.step=5"]
    status, said = fork.run(*settings, *kill, "name=killed", "resume=auto")
    assert status == -9, said
    shutil.rmtree("outputs/ldm/faces")
    shutil.rmtree("outputs/vae")
    status, said = fork.run(*settings, "name=killed", "resume=auto", "init=others")
    assert (status, "was started with init=outputs/ldm/faces, and not others" in said) == (2, True)
    status, said = fork.run(*settings, "name=killed", "resume=auto", "trainable=all")
    assert (status, "trainable: norms -> all" in said) == (2, True)
    status, said = fork.run(*settings, "name=killed", "resume=auto")
    assert status == 0, said
    assert_same_end("ldm/killed", "ldm/straight")
    without = [setting for setting in settings if setting != "init=faces"]
    assert fork.run(*without, "name=killed", "resume=auto")[0] == 0
