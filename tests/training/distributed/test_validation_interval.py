"""When validations come: after whole steps where gradients are accumulated, and on all ranks at once."""

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from latentfaces import ranks
from latentfaces.training.distributed.validation_interval import ValidationTimes, validate_after_whole_steps


class Noted(LightningModule):
    """Notes after which step, and after how many batches, it is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.validated = nn.Linear(1, 1), list[tuple[int, int]]()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.body(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress  # type: ignore[attr-defined]
        self.validated.append((self.global_step, batches.total.ready))


def validations(accumulated: int, every: Any, max_steps: int, mended: bool = True) -> list[tuple[int, int]]:
    """Of a training in epochs of six batches."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=-1,
        max_steps=max_steps,
        accumulate_grad_batches=accumulated,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
    )
    if mended:
        validate_after_whole_steps(trainer)
    module, data = Noted(), DataLoader([torch.zeros(1)] * 6)  # type: ignore[arg-type]
    trainer.fit(module, data, data)
    return module.validated


def test_steps_are_counted_where_an_epoch_ends_with_a_smaller_one() -> None:
    # Steps of four and two batches in turns: three steps are ten batches, and then eight.
    assert validations(accumulated=4, every=3, max_steps=9) == [(3, 10), (6, 18), (9, 28)]


def test_a_time_that_is_over_within_a_step_waits_for_its_end() -> None:
    assert validations(accumulated=4, every={"microseconds": 1}, max_steps=4) == [(1, 4), (2, 6), (3, 10), (4, 12)]


def test_the_librarys_own_rule_falls_within_a_step() -> None:
    assert validations(accumulated=4, every=3, max_steps=4, mended=False)[0] == (0, 3)


def test_without_accumulation_every_step_is_a_batch() -> None:
    assert validations(accumulated=1, every=4, max_steps=9) == [(4, 4), (8, 8)]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Whether it is time on another rank, call by call."""
    told: list[float] = []
    monkeypatch.setattr(ranks, "num_ranks", lambda: 2)
    monkeypatch.setattr(ranks, "all_reduce_max", lambda own, device: partial(float, max(own, told.pop(0))))
    yield told
    assert not told  # all that was told was asked for


def timed(device: str, own: list[bool]) -> tuple[ValidationTimes, Any]:
    """On a trainer that validates after so many minutes, this rank's clock saying `own`, batch by batch."""
    progress = SimpleNamespace(total=SimpleNamespace(ready=0))
    loop = SimpleNamespace(
        _should_check_val_fx=lambda _: own.pop(0), _should_accumulate=lambda: False, batch_progress=progress
    )
    trainer: Any = SimpleNamespace(
        fit_loop=SimpleNamespace(epoch_loop=loop),
        _val_check_time_interval=60.0,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )
    return ValidationTimes(trainer), progress.total


def asked(times: ValidationTimes, total: Any, batches: int) -> list[bool]:
    """What it says after each batch, to the first and to the second who asks."""
    answers = []
    for _ in range(batches):
        total.ready += 1
        answers.append(times(None))
        assert times(None) is answers[-1]
    return answers


def test_the_first_clock_to_be_over_decides_for_all_ranks(others: list[float]) -> None:
    others += [0.0, 1.0, 0.0, 0.0]
    times, total = timed("cpu", [False, False, True, False])
    assert asked(times, total, 4) == [False, True, True, False]


def test_on_a_gpu_it_is_decided_a_batch_later_and_one_time_gives_one_validation(others: list[float]) -> None:
    others += [0.0, 1.0, 1.0, 0.0, 0.0]
    times, total = timed("cuda", [False] * 5)
    assert asked(times, total, 5) == [False, False, True, False, False]
