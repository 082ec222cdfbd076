"""Cases 3, 20, 36 and 38: too few devices, streams of several ranks, a rank that fails, a rank that hangs."""

import os
import re
import time
from pathlib import Path

import pytest
import torch
from helpers.commands import SHORT, TINY_VAE, Command, refused
from helpers.forked import Forker
from helpers.several import ON_CPU, run_on, slurm_environment, start_on
from omegaconf import OmegaConf
from torch import Tensor

from latentfaces.cli.devices import num_devices
from latentfaces.errors import UserError

SMALL = [*TINY_VAE, *SHORT, "data.batch_size=4", *ON_CPU]


def probe(name: str, **options: str) -> list[str]:
    """A callback of device_probes."""
    arguments = [f"+callbacks.probe.{key}={value}" for key, value in options.items()]
    return [f"+callbacks.probe._target_=helpers.device_probes.{name}", *arguments]


@pytest.mark.parametrize(("devices", "number"), [("auto", 2), (-1, 2), (8, 8), ("4", 4), ([0, 2, 3], 3)])
def test_3_devices_are_counted(devices: object, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert num_devices(OmegaConf.create({"accelerator": "auto", "devices": devices})) == number


@pytest.mark.parametrize("devices", [-2, "all", 0, 2.0, None])
def test_3_devices_without_a_number_are_rejected(devices: object) -> None:
    with pytest.raises(UserError, match=rf"trainer\.devices={devices}"):
        num_devices(OmegaConf.create({"accelerator": "auto", "devices": devices}))


def test_3_more_devices_than_there_are(
    train: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit) as exit_:
        train(*TINY_VAE, *SHORT, "trainer.devices=4")
    said = capfd.readouterr().err
    assert exit_.value.code == 2
    assert "has 2 GPUs. Use trainer.devices=2, or" in said
    assert "trainer.accelerator=cpu" in said
    assert "Traceback" not in said


def test_3_one_task_of_slurm_is_not_taken_for_several(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    for name, value in slurm_environment(0, 1, "1").items():
        monkeypatch.setenv(name, value)
    said = refused("train.py", *TINY_VAE, *SHORT, "trainer.accelerator=cpu", "trainer.devices=4", "name=one")
    assert "srun --ntasks-per-node=4" in said


def test_3_tasks_of_slurm_that_see_one_gpu_each_are_told_the_option(
    monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    for name, value in (slurm_environment(0, 4, "1") | {"SLURM_NNODES": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    said = refused("train.py", *TINY_VAE, *SHORT, "name=four")
    assert "--gpus-per-node=4 in place of --gpus-per-task" in said


def drawn(folder: str) -> list[list[dict[str, Tensor]]]:
    """Return the draws of each rank, step by step."""
    return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.ddp
def test_20_streams_differ_over_ranks_and_epochs_and_come_again(fork: Forker) -> None:
    # 36 pictures in two batches of 4 are 4 steps an epoch.
    settings = [*SMALL, "trainer.max_steps=8"]
    for folder in ("first", "second"):
        run_on(2, fork, *settings, f"name={folder}", *probe("Draws", folder=folder))
    ranks = drawn("first")
    noise = [tuple(step["noise"].tolist()) for rank in ranks for step in rank]
    assert len(noise) == len(set(noise)) == 16
    for epoch in (slice(0, 4), slice(4, 8)):
        pictures = torch.cat([step["images"] for rank in ranks for step in rank[epoch]])
        assert len({picture.numpy().tobytes() for picture in pictures}) == 32  # each once, over both ranks
    first, second = (torch.cat([step["images"] for step in ranks[0][epoch]]) for epoch in (slice(0, 4), slice(4, 8)))
    assert not torch.equal(first, second)
    for one, other in zip(ranks, drawn("second"), strict=True):
        for step, again in zip(one, other, strict=True):
            assert torch.equal(step["images"], again["images"])
            assert torch.equal(step["noise"], again["noise"])


def is_alive(number: int) -> bool:
    """Whether there is a process of this number that is not merely waited for."""
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.ddp
@pytest.mark.parametrize("failing", [0, 1])
def test_36_a_rank_that_fails_ends_all_and_says_why(failing: int, fork: Forker) -> None:
    ranks = start_on(2, fork, *SMALL, "name=failed", *probe("OnOneRank", rank=str(failing)))
    ranks[failing].wait_for(lambda: "boom" in ranks[failing].said or not ranks[failing].process.is_alive())
    failed_at = time.monotonic()
    ends = [rank.wait(20) for rank in ranks]
    assert time.monotonic() - failed_at < 15
    assert 0 not in ends
    assert "ValueError: boom" in ranks[failing].said
    echo = ranks[1 - failing].said
    assert "Traceback" not in echo
    if failing == 1:
        assert "error: rank 1 failed" in echo
    assert not any(is_alive(rank.process.pid or 0) for rank in ranks)


@pytest.mark.ddp
def test_a_time_limit_broadcasts_nothing_in_a_step(fork: Forker) -> None:
    steps = ["trainer.max_steps=8", "trainer.val_check_interval=100", "trainer.log_every_n_steps=100"]
    for name, limit in (("timed", ["trainer.max_time=00:01:00:00"]), ("counted", [])):
        run_on(2, fork, *SMALL, *steps, *limit, f"name={name}", *probe("Broadcasts", path=f"{name}.txt"))
    assert Path("timed.txt").read_text() == Path("counted.txt").read_text()


@pytest.mark.ddp
def test_38_a_rank_that_hangs_ends_all(fork: Forker) -> None:
    patience = ["strategy=ddp", "trainer.strategy.timeout_minutes=0.05"]
    ranks = start_on(2, fork, *SMALL, *patience, "name=stuck", *probe("Hangs"))
    assert 0 not in [rank.wait(60) for rank in ranks]
    assert re.search("timed? ?out", ranks[0].said, re.IGNORECASE)
    assert "error: rank 0" in ranks[1].said  # it failed, or has ended by now


def test_a_strategy_waits_ten_minutes_unless_told_otherwise(
    train: Command, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from latentfaces.training.distributed.strategies import DDP

    assert DDP()._timeout.total_seconds() == 600
    with pytest.raises(SystemExit):
        train(*SMALL, "strategy=ddp", "trainer.devices=2", "trainer.strategy.timeout_minutes=0")
    assert "timeout_minutes=0" in capfd.readouterr().err
    assert os.environ.get("LOCAL_RANK") is None


def test_tasks_of_slurm_without_srun_are_rejected(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    for name, value in slurm_environment(0, 2, "1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert "srun did not start this process" in refused("train.py", *TINY_VAE, *SHORT, "name=two")


@pytest.mark.parametrize(("variable", "value"), [("RANK", ""), ("NODE_RANK", "1"), ("LOCAL_RANK", "1")])
def test_ranks_of_an_earlier_launcher_are_ignored(variable: str, value: str, fork: Forker) -> None:
    status, said = fork.run(*TINY_VAE, *SHORT, "name=alone", **{variable: value})
    assert status == 0, said
    assert (f"Ignoring {variable}=1" in said) == bool(value)
    assert Path("outputs/vae/alone/config.yaml").is_file()
    assert Path("outputs/vae/alone/checkpoints/last.ckpt").is_file()
