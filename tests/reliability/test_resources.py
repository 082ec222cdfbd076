"""What the machine or the network lacks (cases 22 and 24): the keys that need less of it, or going on without."""

import os
from pathlib import Path

import pytest
import torch
from commands import SHORT, TINY_LDM, TINY_VAE, refused

FULL = {
    "a GPU": ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 GiB"),
    "a library of the GPU's": ("builtins.RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    "the CPU's allocator": ("builtins.RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "Python or NumPy": ("builtins.MemoryError", ""),
}


def raising(error: str, text: str) -> list[str]:
    options = {"_target_": "probes.Raise", "step": 1, "error": error, "text": f'"{text}"'}
    return [f'+callbacks.raise.{key}={value}' for key, value in options.items()]


@pytest.mark.parametrize(("error", "text"), FULL.values(), ids=FULL.keys())
def test_case_22_memory_that_is_full_is_told_with_its_size_and_the_keys_that_need_less(
    error: str, text: str, workplace: Path
) -> None:
    said = refused("train.py", *TINY_VAE, *SHORT, "trainer.precision=32-true", *raising(error, text), "name=large")
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert f"{size:.1f} GiB" in said or torch.cuda.is_available()
    for key in (
        "data.batch_size=8",
        "trainer.accumulate_grad_batches=1",
        "trainer.precision=bf16-mixed",
        "model.autoencoder.gradient_checkpointing=true",
    ):
        assert key in said


def test_case_22_only_keys_that_help_are_named(home_with_faces: Path) -> None:
    error = raising(*FULL["a GPU"])
    said = refused("train.py", *TINY_LDM, *SHORT, "trainer.precision=bf16-mixed", *error, "name=large")
    assert "model/denoiser" in said
    assert "gradient_checkpointing" not in said
    assert "precision" not in said


@pytest.fixture
def home_with_faces(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workplace with a finished run of each stage, to read."""
    monkeypatch.chdir(trained)
    return trained


def test_case_22_in_sampling_the_batch_is_named(
    home_with_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentfaces.pipeline import FacePipeline

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FacePipeline, "sample", full)
    said = refused("sample.py", "num_images=3", "batch_size=3", f"output={tmp_path}")
    assert "lower batch_size=3, or take precision=bf16" in said
