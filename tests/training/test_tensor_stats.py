"""Statistics of tensors as a run logs them."""

from pathlib import Path

import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, Command

from latentfaces.evaluation import TensorValues
from latentfaces.training.callbacks import tensor_stats

EVERY_TWO = "callbacks.tensor_stats.every_n_steps=2"


def logged(folder: str) -> dict[float, set[str]]:
    """Names of the tensors that were looked at, by step."""
    rows = TensorValues.read(Path(folder) / "tensors.csv").rows
    steps: dict[float, list[str]] = {}
    for row in rows:
        steps.setdefault(float(row["step"]), []).append(str(row["tensor"]))
    assert all(len(names) == len(set(names)) for names in steps.values())
    return {step: set(names) for step, names in steps.items()}


def test_a_run_logs_weights_gradients_and_activations_and_a_resume_repeats_nothing(
    train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_stats, "SMALLEST", 100)
    train(*TINY_VAE, *SHORT, EVERY_TWO, "name=a")
    before = logged("outputs/vae/a")
    assert set(before) == {0.0, 2.0}
    assert before[0.0] == before[2.0]
    assert {"encoder.stem.weight", "encoder.stem.weight.grad", "encoder.stem.output", "decoder.output"} <= before[0.0]
    train(*TINY_VAE, *SHORT, EVERY_TWO, "name=a", "resume=true", "trainer.max_steps=6")
    assert set(logged("outputs/vae/a")) == {0.0, 2.0, 4.0}


def test_stage_two_and_accumulated_gradients_are_looked_at_once_a_step(train: Command) -> None:
    train(*TINY_VAE, *SHORT, "name=a")
    train(*TINY_LDM, *SHORT, EVERY_TWO, "trainer.accumulate_grad_batches=2", "name=a")
    seen = logged("outputs/ldm/a")
    assert set(seen) == {0.0, 2.0}
    assert any(name.endswith(".grad") for name in seen[2.0])
    assert "network.out.output" in seen[0.0]


def test_activations_of_a_compiled_network_are_left_alone(train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", self._call_impl))
    train(*TINY_VAE, *SHORT, EVERY_TWO, "device.compile=true", "name=a")
    names = logged("outputs/vae/a")[0.0]
    assert any(name.endswith(".grad") for name in names)
    assert not any(name.endswith(".output") for name in names)
