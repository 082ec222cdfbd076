"""Too little memory (case 22): the error names keys that need less. No network (case 24): the training continues."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.commands import SHORT, TINY_LDM, TINY_VAE, refused
from helpers.forked import Forker

from latentfaces.run import open_run

FULL = {
    "a GPU": ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 GiB"),
    "a library of the GPU's": ("builtins.RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    "the CPU's allocator": ("builtins.RuntimeError", "[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "Python or NumPy": ("builtins.MemoryError", ""),
}


def raising(error: str, text: str) -> list[str]:
    options = {"_target_": "helpers.probes.Raise", "step": 1, "error": error, "text": f'"{text}"'}
    return [f"+callbacks.raise.{key}={value}" for key, value in options.items()]


@pytest.mark.parametrize(("error", "text"), FULL.values(), ids=FULL.keys())
def test_case_22_full_memory_is_reported_with_the_keys_that_need_less(error: str, text: str, workplace: Path) -> None:
    said = refused("train.py", *TINY_VAE, *SHORT, "trainer.precision=32-true", *raising(error, text), "name=large")
    assert text in said
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
    assert "lower batch_size=3, or use precision=bf16" in said


KEY = "0123456789abcdef0123456789abcdef01234567"
WITH_WANDB = [*TINY_VAE, *SHORT[1:], "logger=wandb", "name=logged"]
FOLDER = Path("outputs/vae/logged")


def logged_offline() -> bool:
    """Whether the run is complete, with W&B's files next to the log."""
    assert (FOLDER / "result.json").exists()
    assert "val/loss" in (FOLDER / "metrics.csv").read_text()
    return bool(list(FOLDER.glob("wandb/offline-run-*/*.wandb")))


def test_case_24_without_an_account_wandb_logs_offline_and_says_so(fork: Forker, workplace: Path) -> None:
    nobody = {"WANDB_MODE": "", "WANDB_API_KEY": "", "HOME": str(workplace)}  # where a ~/.netrc would be
    training = fork.start(*WITH_WANDB, **nobody)
    assert training.wait(200) == 0, training.said
    assert logged_offline()
    assert training.said.count("wandb login") == 1
    assert "wandb:" not in training.said  # its own dozens of lines


def online(address: str) -> dict[str, str]:
    """Return the environment of a user with a W&B account at this address."""
    return {"WANDB_MODE": "online", "WANDB_API_KEY": KEY, "WANDB_BASE_URL": address, "WANDB_INIT_TIMEOUT": "1"}


def test_case_24_without_a_network_wandb_logs_offline_and_says_so(fork: Forker) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        training = fork.start(*WITH_WANDB, **online(f"http://127.0.0.1:{closed.getsockname()[1]}"))
        assert training.wait(200) == 0, training.said
    assert logged_offline()
    assert "W&B: could not start online" in training.said
    (folder,) = FOLDER.glob("wandb/offline-run-*")
    stored = open_run(FOLDER).config["logger"]["wandb"]["id"]
    assert stored == folder.name.rpartition("-")[2]  # which a resume continues


def test_case_24_a_server_that_refuses_the_key_or_is_broken_does_not_end_a_training(fork: Forker) -> None:
    class Broken(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(500)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        training = fork.start(*WITH_WANDB, **online(f"http://127.0.0.1:{server.server_address[1]}"))
        status = training.wait(200)
        server.shutdown()
        thread.join()
    assert status == 0, training.said
    assert logged_offline()
    assert "W&B: could not start online" in training.said
