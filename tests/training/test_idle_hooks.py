"""Hooks that a callback has not are not called, and those it has are."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from latentfaces.training.callbacks import skip_idle_hooks
from latentfaces.training.callbacks.idle_hooks import STEP_HOOKS


class Counter(Callback):
    """Counts the steps' ends; what it has by inheritance alone counts as its own."""

    def __init__(self) -> None:
        self.ends = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends += 1


class Heir(Counter):
    """Has its hook from a class between."""


class Recorder(Profiler):
    """Keeps what was called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def start(self, action_name: str) -> None:
        self.names.append(action_name)

    def stop(self, action_name: str) -> None:
        pass


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def calls(callbacks: list[Callback], skip: bool, tmp_path: Any) -> list[str]:
    """The hooks of callbacks in three steps, as "Class.hook"."""
    recorder = Recorder()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=3, profiler=recorder, callbacks=callbacks, default_root_dir=tmp_path,
        enable_model_summary=False, **quiet,
    )  # fmt: skip
    if skip:
        skip_idle_hooks(trainer.callbacks)  # type: ignore[attr-defined]
    trainer.fit(Module(), DataLoader(torch.ones(6, 2), batch_size=2))  # type: ignore[arg-type]
    made = [name.removeprefix("[Callback]") for name in recorder.names if name.startswith("[Callback]")]
    return [name for name in made if name.rpartition(".")[2] in STEP_HOOKS]


def test_only_hooks_that_do_something_are_called(tmp_path: Any) -> None:
    counter, heir, instance = Counter(), Heir(), Callback()
    seen: list[int] = []
    instance.on_after_backward = lambda *_: seen.append(1)  # type: ignore[method-assign]
    made = calls([counter, heir, instance, Callback()], True, tmp_path)
    each = ["Callback.on_after_backward", "Counter.on_train_batch_end", "Heir.on_train_batch_end"]
    assert sorted(made) == sorted(3 * each)
    assert (counter.ends, heir.ends, len(seen)) == (3, 3, 3)


def test_left_alone_the_library_calls_them_all(tmp_path: Any) -> None:
    assert len(calls([Counter(), Callback()], False, tmp_path)) == 3 * 2 * len(STEP_HOOKS)
