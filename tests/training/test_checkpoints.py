"""Times of checkpoints, those that are kept, and the time limit over resumes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import SHORT, TINY_VAE, run_command
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from latentfaces.training import AtomicCheckpointIO, TimeLimit
from latentfaces.training.callbacks import BestCheckpoint, BestWeights, LastCheckpoint

CLOCK = "latentfaces.training.callbacks.checkpoints.time"


class Rehearsed(LightningModule):
    """Its validation after step n gives `losses[n]`."""

    def __init__(self, losses: dict[int, float]) -> None:
        super().__init__()
        self.body, self.losses = nn.Linear(1, 1), losses

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.body(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/loss", torch.tensor(self.losses.get(self.global_step, 9.0)))


QUIET: dict[str, Any] = {
    **{"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0},
    **{"max_epochs": -1, "val_check_interval": 1, "check_val_every_n_epoch": None},
}


def fit(
    *callbacks: Callback, losses: dict[int, float] | None = None, checkpoint: Path | None = None, **limits: Any
) -> Trainer:
    """Train with a validation after each step."""
    trainer = Trainer(
        callbacks=[*callbacks],
        plugins=[AtomicCheckpointIO()],
        accelerator="cpu",
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        **QUIET,
        **{"log_every_n_steps": 4} | limits,
    )
    data = DataLoader([torch.zeros(1)] * 6)  # type: ignore[arg-type]
    trainer.fit(Rehearsed(losses or {}), data, data, ckpt_path=checkpoint, weights_only=True)
    return trainer


class Written(Callback):
    """At which steps `last.ckpt` was written.

    Args:
        seconds: what each step takes, of a clock that stands still otherwise.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.path, self.seconds, self.steps = folder / "last.ckpt", seconds, list[int]()
        self.now = 0.0
        monkeypatch.setattr(f"{CLOCK}.monotonic", lambda: self.now)

    def on_train_batch_start(self, *_: Any) -> None:
        self.now += self.seconds

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(
    ("every", "minutes", "seconds", "steps"),
    [
        (4, None, 1000.0, [4, 8]),
        (100, 1.0, 25.0, [3, 6, 9]),  # a minute is over after each third step
        (4, 1.0, 25.0, [3, 4, 7, 8]),  # each write restarts the minute
        (4, 1.0, 1.0, [4, 8]),
    ],
)
def test_the_last_is_written_after_so_many_steps_or_minutes(
    every: int, minutes: float | None, seconds: float, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written(tmp_path, monkeypatch, seconds)
    fit(written, LastCheckpoint(tmp_path, every, minutes), max_steps=10, limit_val_batches=0)
    assert written.steps == steps
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == steps[-1]


def test_accumulated_batches_write_a_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Written(tmp_path, monkeypatch)
    last = LastCheckpoint(tmp_path, every_n_train_steps=1)
    fit(written, last, max_steps=3, accumulate_grad_batches=2, limit_val_batches=0)
    assert written.steps == [1, 2, 3]


def test_minutes_that_are_over_within_a_step_wait_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint holds no gradients: resuming within a step would lose a part of them."""
    batches: list[int] = []

    class Counted(Written):
        def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
            super().on_save_checkpoint(trainer, module, checkpoint)
            batches.append(trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    written = Counted(tmp_path, monkeypatch, seconds=25.0)  # a minute is over after each third batch
    last = LastCheckpoint(tmp_path, every_n_train_steps=100, every_n_minutes=1.0)
    fit(written, last, max_steps=6, accumulate_grad_batches=2, limit_val_batches=0)
    assert batches == [4, 8, 12]
    assert written.steps == [2, 4, 6]


def test_several_ranks_ask_the_clock_only_in_steps_that_are_logged(tmp_path: Path) -> None:
    asked: list[int] = []

    class Ranks:
        world_size, log_every_n_steps, global_step = 2, 4, 0

        class strategy:  # noqa: N801
            @staticmethod
            def broadcast(late: bool) -> bool:
                asked.append(Ranks.global_step)
                return late

    last = LastCheckpoint(tmp_path, 100, 1e-9)
    due = []
    for Ranks.global_step in range(1, 9):
        due.append(last.due(Ranks))  # type: ignore[arg-type]
    assert asked == [4, 8]
    assert due == [False, False, False, True] * 2


LOSSES = {1: 5.0, 2: 3.0, 3: 4.0, 4: 1.0, 5: 6.0, 6: 2.0}


def kept(folder: Path) -> dict[str, int]:
    """The checkpoints and the steps that they are of."""
    return {p.name: torch.load(p, weights_only=True)["global_step"] for p in sorted(folder.glob("*.ckpt"))}


@pytest.mark.parametrize(
    ("save_top_k", "names"),
    [
        (0, {}),
        (1, {"best.ckpt": 4}),
        (3, {f"best_000000{step}.ckpt": step for step in (2, 4, 6)}),
        (-1, {f"best_000000{step}.ckpt": step for step in LOSSES}),
    ],
)
def test_the_best_are_kept_as_many_as_asked_for(save_top_k: int, names: dict[str, int], tmp_path: Path) -> None:
    fit(BestCheckpoint(tmp_path, save_top_k=save_top_k), losses=LOSSES, max_steps=6)
    assert kept(tmp_path) == names


def test_a_resumed_run_keeps_the_best_of_an_uninterrupted_one(tmp_path: Path) -> None:
    fit(BestCheckpoint(tmp_path, save_top_k=3), losses=LOSSES, max_steps=3).save_checkpoint(tmp_path / "last")
    fit(BestCheckpoint(tmp_path, save_top_k=3), losses=LOSSES, checkpoint=tmp_path / "last", max_steps=6)
    assert kept(tmp_path) == {f"best_000000{step}.ckpt": step for step in (2, 4, 6)}


def test_max_time_is_the_sum_over_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time.monotonic", lambda: now)

    class Second(Callback):
        """Each step takes one."""

        def on_train_batch_start(self, *_: Any) -> None:
            nonlocal now
            now += 1

    def steps(max_time: str, **options: Any) -> int:
        trainer = fit(Second(), TimeLimit(max_time), limit_val_batches=0, **options)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return trainer.global_step

    assert steps("00:00:00:05") == 5
    now += 1000  # a night between two runs costs nothing
    assert steps("00:00:00:05", checkpoint=tmp_path / "last.ckpt") == 5
    assert steps("00:00:00:09", checkpoint=tmp_path / "last.ckpt") == 9
    assert steps("00:00:00:11", checkpoint=tmp_path / "last.ckpt") == 11


def test_ranks_agree_on_the_time_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = TimeLimit("00:00:01:40")
    monkeypatch.setattr(limit.clock, "all_reduce_max", lambda value, device: 25.0)  # of the slowest rank
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    limit.on_train_start(trainer, Rehearsed({}))
    assert limit.progress == 0.25


def test_the_last_step_is_validated_once(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    seen = BestWeights.on_validation_end

    def counting(self: BestWeights, trainer: Trainer, pl_module: LightningModule) -> None:
        steps.append(trainer.global_step)
        seen(self, trainer, pl_module)

    monkeypatch.setattr(BestWeights, "on_validation_end", counting)
    monkeypatch.setattr(TimeLimit, "progress", property(lambda self: self.time_elapsed() > 0))
    run_command("train.py", *TINY_VAE, *SHORT, "trainer.max_time=00:01:00:00", "name=timed")
    assert steps == [1]
    monkeypatch.undo()
    monkeypatch.setattr(BestWeights, "on_validation_end", counting)
    monkeypatch.chdir(workplace)
    run_command("train.py", *TINY_VAE, *SHORT, "name=counted", "trainer.max_steps=3")
    assert steps == [1, 2, 3]
