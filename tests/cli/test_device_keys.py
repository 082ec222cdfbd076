"""The keys `device.*`: applied, told in one line, refused where they have no effect."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.commands import TINY_VAE, Command

from latentfaces.cli.compute import apply_choices
from latentfaces.diffusion import DiT
from latentfaces.errors import UserError
from latentfaces.nn import DeviceChoices

ONE_STEP = ["trainer.max_steps=1", "trainer.val_check_interval=1", "logger=csv", "callbacks=none"]


def test_choices_are_applied_and_told_once(
    train: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    attention = "model.autoencoder.attention=true"
    options = ["device.attention=sdpa", "device.channels_last=true", "device.compile=true", "trainer.precision=32-true"]
    train(*TINY_VAE, *ONE_STEP, attention, *options, "name=all")
    weights = torch.load("outputs/vae/all/checkpoints/best_vae.pth", weights_only=True)
    assert weights["encoder.stem.weight"].is_contiguous(memory_format=torch.channels_last)
    out = capsys.readouterr().out
    words = "32-true, sdpa attention, channels last, compiled at the first step"
    assert out.count(f"training on 1 CPU device(s), {words}\n") == 1
    assert len(compiled) == 2  # encoder and decoder


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["device.attention=fast"], "device.attention=fast is invalid: input should be 'auto', 'sdpa' or 'plain'."),
        (["device.compile=perhaps"], "device.compile=perhaps is invalid: input should be 'auto', True or False."),
        (["device.attention=plain"], "device.attention has no effect on a network without attention"),
    ],
)
def test_keys_without_effect_are_refused(
    options: list[str], sentence: str, train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        train(*TINY_VAE, *ONE_STEP, "name=refused", *options)
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not Path("outputs/vae/refused").exists()


def test_a_transformer_has_no_channels_to_put_last(monkeypatch: pytest.MonkeyPatch) -> None:
    choices, cpu = DeviceChoices.fastest(torch.device("cpu")), torch.device("cpu")
    monkeypatch.setattr("latentfaces.cli.compute.overridden_keys", lambda: [])
    words = apply_choices(replace(choices, precision="bf16-mixed"), DiT(4, 16, 1, 2), cpu)
    assert words == "bf16-mixed, plain attention"
    monkeypatch.setattr("latentfaces.cli.compute.overridden_keys", lambda: ["device.channels_last"])
    with pytest.raises(UserError, match=r"^device\.channels_last has no effect"):
        apply_choices(choices, DiT(4, 16, 1, 2), cpu)


@pytest.mark.parametrize(("kind", "precision"), [("cpu", "highest"), ("cuda", "high")])
def test_float32_products_use_tf32_on_gpus_as_convolutions_do(
    monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    monkeypatch.setattr("latentfaces.cli.compute.overridden_keys", lambda: [])
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    apply_choices(DeviceChoices.fastest(torch.device("cpu")), DiT(4, 16, 1, 2), torch.device(kind))
    assert (chosen or ["highest"]) == [precision]
