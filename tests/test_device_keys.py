"""The keys `device.*`: applied, told in one line, refused where they have no effect."""

from pathlib import Path

import pytest
import torch
from commands import SHORT, TINY_LDM, TINY_VAE, Command, run_command, trained_in

ONE_STEP = ["trainer.max_steps=1", "trainer.val_check_interval=1", "logger=csv", "callbacks=none"]
DIT = ["model/denoiser=tiny", "model.denoiser.network.width=16", "model.denoiser.network.depth=1"]
TINY_DIT = [*[key for key in TINY_LDM if "network" not in key and "unet" not in key], *DIT]


@pytest.fixture(scope="module")
def with_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained VAE."""
    return trained_in(tmp_path_factory.mktemp("device"), [*TINY_VAE, *SHORT, "callbacks=none", "name=faces"])


def test_choices_are_applied_and_told_once(
    train: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    attention = "model.autoencoder.attention=true"
    options = [
        "device.attention=sdpa",
        "device.channels_last=true",
        "device.compile=true",
        "device.fused_optimizer=false",
    ]
    train(*TINY_VAE, *ONE_STEP, attention, *options, "name=all")
    out = capsys.readouterr().out
    words = "32-true, sdpa attention, channels last, optimizer not fused, compiled at the first step"
    assert out.count(f"training on 1 CPU device(s): {words}\n") == 1
    assert len(compiled) == 2  # encoder and decoder


def test_channels_last_train_the_same(train: Command) -> None:
    weights = []
    for number, switch in enumerate(("false", "true")):
        train(*TINY_VAE, *ONE_STEP, f"device.channels_last={switch}", "trainer.precision=32-true", f"name={number}")
        weights.append(torch.load(f"outputs/vae/{number}/checkpoints/best_vae.pth", weights_only=True))
    assert weights[1]["encoder.stem.weight"].is_contiguous(memory_format=torch.channels_last)
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-3), name


@pytest.mark.parametrize(
    ("stage", "options", "sentence"),
    [
        ("vae", ["device.attention=fast"], "device.attention=fast is not one of auto, sdpa, plain"),
        ("vae", ["device.compile=perhaps"], "device.compile=perhaps is not one of auto, true, false"),
        ("vae", ["device.attention=plain"], "device.attention has no effect on a network without attention"),
        ("dit", ["device.channels_last=true"], "device.channels_last has no effect on a network without convolutions"),
        (
            "vae",
            ["device.fused_optimizer=true", "model.optimizer.fused=true"],
            "device.fused_optimizer has no effect: torch.optim.AdamW does not ask for it",
        ),
    ],
)
def test_keys_without_effect_are_refused(
    stage: str, options: list[str], sentence: str, with_vae: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(with_vae)
    with pytest.raises(SystemExit) as left:
        run_command("train.py", *(TINY_VAE if stage == "vae" else TINY_DIT), *ONE_STEP, "name=refused", *options)
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not list(with_vae.glob("outputs/*/refused"))
