"""Callbacks that tests put into commands of their own process."""

import importlib
import os
import resource
import signal as signals
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


class SignalAt(Callback):
    """Sends the process a signal, as a user, a scheduler or the out-of-memory killer would.

    Args:
        step: number of completed steps.
        signal: its name.
        hook: where in the step.
        rank: to which process.
    """

    def __init__(self, step: int, signal: str = "SIGKILL", hook: str = "on_train_batch_start", rank: int = 0) -> None:
        self.step, self.number, self.rank = step, getattr(signals, signal), rank
        self.sent = False
        setattr(self, hook, self.send)

    def send(self, trainer: Trainer, *_: Any) -> None:
        """Send it, once."""
        if trainer.global_step == self.step and trainer.global_rank == self.rank and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.number)


class KillInSave(Callback):
    """Ends the process in the middle of the first save after `step` steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.fsync = lambda file: os.kill(os.getpid(), signals.SIGKILL)


class FullDisk(Callback):
    """Let the system refuse to write beyond `size` bytes of a file, from step `first` until step `last` begins."""

    def __init__(self, first: int, last: int, size: int = 50_000) -> None:
        self.first, self.last, self.size = first, last, size

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        full = self.first <= trainer.global_step < self.last
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size if full else most, most))


class Sleep(Callback):
    """Spends a minute in a step."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            Path("asleep").touch()
            time.sleep(60)


class Poison(Callback):
    """Makes one gradient, or one picture, NaN in one step, as a spike of the loss would.

    Args:
        step: which.
        what: "gradient" or "picture".
        rank: on which.
    """

    def __init__(self, step: int, what: str = "gradient", rank: int = 0) -> None:
        self.step, self.what, self.rank = step, what, rank

    def due(self, trainer: Trainer, what: str) -> bool:
        """Whether it is time for it."""
        return (trainer.global_step, trainer.global_rank, self.what) == (self.step, self.rank, what)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        if self.due(trainer, "picture"):
            batch[0] = float("nan")

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if self.due(trainer, "gradient"):
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


class SpoilValidation(Callback):
    """Makes the weights that are validated no numbers, in the validation of one step.

    Args:
        step: which.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            next(module.parameters()).data.fill_(float("nan"))


class Fault(Callback):
    """A fault of the program's in one step.

    Args:
        step: which.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the planned fault")


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
            children = psutil.Process().children(recursive=True)
            for child in children:
                child.kill()
            psutil.wait_procs(children, timeout=30)  # a short training could be over before they are gone
