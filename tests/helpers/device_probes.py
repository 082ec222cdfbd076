"""Callbacks that make one rank fail, or look at what each rank sees."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from latentfaces.training.callbacks import EMA
from latentfaces.training.checkpoint import atomic_save
from latentfaces.training.distributed import watchdog
from latentfaces.training.distributed.sharding import gathered


class OnOneRank(Callback):
    """Does something on one rank, before a step.

    Args:
        rank: which.
        step: when.
    """

    def __init__(self, rank: int = 1, step: int = 2) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            self.act()

    def act(self) -> None:
        """Run the action."""
        raise ValueError("boom")


class Hangs(OnOneRank):
    """Waits for what never comes. The other ranks wait one second for it, not five."""

    def __init__(self, rank: int = 1, step: int = 2) -> None:
        super().__init__(rank, step)
        watchdog.GRACE = 1.0

    def act(self) -> None:
        time.sleep(1000)


class Broadcasts(Callback):
    """Count the objects that are broadcast while steps are taken."""

    def __init__(self, path: str) -> None:
        self.path, self.count = Path(path), 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        broadcast = strategy.broadcast

        def counted(*arguments: Any) -> Any:
            self.count += 1
            return broadcast(*arguments)

        strategy.broadcast = counted

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.path.write_text(str(self.count))


class Draws(Callback):
    """Writes what each rank has seen in each step: pictures, and the next numbers of the stream it has drawn from."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: list[dict[str, Tensor]] = []
        multiprocessing.set_start_method("fork", force=True)  # for loading, as where no test runs

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Tensor, batch_idx: int) -> None:
        self.seen.append({"images": batch.clone()})

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        self.seen[-1]["noise"] = torch.randn(4)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        atomic_save(self.seen, self.folder / f"{trainer.global_rank}.pt")


class Weights(Callback):
    """Writes weights, averages and the optimizer's state, gathered from all ranks, when training starts and ends."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.write(trainer, module, "start")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.write(trainer, module, "end")

    def write(self, trainer: Trainer, module: Any, when: str) -> None:
        """All of them, into one file."""
        named = dict(module.network.named_parameters())
        (ema,) = (callback for callback in trainer.callbacks if isinstance(callback, EMA))  # type: ignore[attr-defined]
        state = module.optimizers().optimizer.state
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in named.items()}
        for width, average in ema.averages.items():
            tensors |= {f"average {width}.{name}": mean for name, mean in zip(named, average, strict=True)}
        for key in ("exp_avg", "exp_avg_sq"):
            tensors |= {f"{key}.{name}": state[p][key] for name, p in named.items() if p in state}
        everything = gathered(tensors)
        if trainer.is_global_zero:
            atomic_save(everything, self.folder / f"{when}.pt")
