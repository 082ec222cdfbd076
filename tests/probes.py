"""Callbacks that tests put into commands of their own process."""

import importlib
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class KillAt(Callback):
    """Ends the process as an out-of-memory killer would, when `step` steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Poison(Callback):
    """Makes one gradient NaN in one step, as a spike of the loss would.

    Args:
        step: which.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self.step:
            next(p for p in module.parameters() if p.grad is not None).grad[:] = float("nan")  # type: ignore[index]


class GradientProbe(Callback):
    """Writes what each rank saw in its first step: images, a draw of noise, gradients; and at the end the adversary."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        if "images" not in self.seen:
            self.seen["images"] = batch.clone()

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        if "gradients" not in self.seen:
            self.seen["gradients"] = [p.grad.clone() for p in module.parameters() if p.grad is not None]
            self.seen["noise"] = torch.randn(4)  # the next draw of a stream that the step has drawn from
            self.folder.mkdir(exist_ok=True)
            torch.save(self.seen, self.folder / f"{trainer.global_rank}.pt")

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.save_adversary(trainer, module, "start")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.save_adversary(trainer, module, "end")

    def save_adversary(self, trainer: Trainer, module: LightningModule, when: str) -> None:
        """Write the discriminator's weights, where there is one."""
        if getattr(module, "adversary", None) is not None:
            self.folder.mkdir(exist_ok=True)
            weights = module.adversary.discriminator.state_dict()  # type: ignore[union-attr]
            torch.save(weights, self.folder / f"adversary_{when}_{trainer.global_rank}.pt")


class Harm(Callback):
    """Does something to a file when `step` steps are done.

    Args:
        step: when.
        fault: "delete", or "cut" to a few bytes.
        path: the file.
    """

    def __init__(self, step: int, fault: str, path: str) -> None:
        self.step, self.fault, self.path = step, fault, Path(path)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and self.path.exists():
            if self.fault == "delete":
                self.path.unlink()
            else:
                os.truncate(self.path, 200)


class KillWorker(Callback):
    """Kills one of the processes that load, as the system does when memory is full, when `step` steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            multiprocessing.active_children()[0].kill()


class Raise(Callback):
    """Raises an error when `step` steps are done.

    Args:
        step: when.
        error: class of the error, as module.name.
        text: what it says.
    """

    def __init__(self, step: int, error: str, text: str) -> None:
        module, _, name = error.rpartition(".")
        self.step, self.error = step, getattr(importlib.import_module(module), name)(text)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise self.error


class KillWandb(Callback):
    """Kills the process that W&B writes in, when `step` steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            for child in psutil.Process().children(recursive=True):
                child.kill()
