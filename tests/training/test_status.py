"""Status lines of a training: on a terminal, in a log file and without output."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import SHORT, TINY_VAE, Command

from latentfaces.training import BaseModule
from latentfaces.training.callbacks import Status, status


class Halfway(BaseModule):
    """A stage whose progress is set by hand."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.share = 0.0

    network = exports = preview = None  # type: ignore[assignment]
    device = torch.device("cpu")

    def progress(self) -> float:
        return self.share


def trainer(step: int, waited: float | None = None) -> Any:
    return SimpleNamespace(
        global_step=step,
        world_size=1,
        is_global_zero=True,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
        datamodule=SimpleNamespace(batch_size=8),
        train_dataloader=SimpleNamespace(**({} if waited is None else {"waited": waited})),
        callback_metrics={"train/loss": torch.tensor(0.25), "val/loss": torch.tensor(0.5)},
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that is set by hand."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def run(
    clock: SimpleNamespace, seconds: list[float], validations: tuple[int, ...] = (), waited: float | None = None
) -> None:
    """Run a training whose steps end at these times."""
    callback, module = Status(), Halfway()
    callback.on_train_start(trainer(0), module)
    for step, second in enumerate(seconds, start=1):
        clock.seconds, module.share = 1000 + second, step / len(seconds)
        callback.on_train_batch_end(trainer(step, waited), module, None, None, 0)
        if step in validations:
            callback.on_validation_start(trainer(step), module)
            clock.seconds += 5
            callback.on_validation_end(trainer(step, waited), module)
    callback.on_train_end(trainer(len(seconds)), module)


def test_a_line_tells_step_time_speed_waiting_memory_and_loss(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "peak_memory", lambda device: 1.26e9)
    run(clock, [10.0, 20.0, 30.0, 40.0], validations=(2,), waited=4.0)
    # Two of four steps in 20 s and 5 s of validation: as much again to go. 16 images in the 20 s, 4 s of them waited.
    expected = (
        "step 2 · 0:00:25, 0:00:25 to go · 1 images/s · 20% waiting for data · 1.3 GB · loss 0.2500 · val/loss 0.5"
    )
    assert capsys.readouterr().out.splitlines() == [expected]


def test_a_log_file_gets_a_line_a_minute_and_later_fewer(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clock, [20.0 * n for n in range(1, 10)])
    told = capsys.readouterr().out
    assert re.findall(r"step (\d+)", told) == ["3", "6", "9"]
    assert "\x1b" not in told
    run(clock, [60.0 * n for n in range(1, 3 * 24 * 60)])  # three days
    # 10 lines in 10 minutes, then each at 10/9 of the time of the last: log(432) / log(10/9) = 58.
    assert 60 < len(capsys.readouterr().out.splitlines()) < 75


def test_a_real_run_knows_how_long_it_waits_and_what_it_takes(
    train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    train(*TINY_VAE, *SHORT, "name=a")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == 2
    for line in lines:
        waiting, memory = re.search(r"(\d+)% waiting for data · ([\d.]+) GB", line).groups()  # type: ignore[union-attr]
        assert 0 <= int(waiting) <= 100
        assert 0.1 < float(memory) < 20
