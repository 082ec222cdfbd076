"""Statistics of tensors inside the network, in tensors.csv."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from latentfaces.bounds import Positive
from latentfaces.evaluation.tensor_values import TensorValues, activations, module_tensors, track_tensor_values
from latentfaces.ranks import full_tensor
from latentfaces.training.base_module import BaseModule
from latentfaces.training.step_log import StepLog

DEPTH, SMALLEST = 2, 1024
"""Depth of the modules whose activations are measured, and smallest number of values of a measured weight."""


class TensorStats(Callback):
    """Log statistics of weights, gradients and activations every N steps, see `TensorValues`.

    Activations of compiled networks are left out. Measuring takes a tenth of a step (8 million values, batches of 32 on
    a CPU), which is 0.02 % of training with the default interval.

    Args:
        folder: folder of the run, for tensors.csv.
        every_n_steps: interval in steps.
    """

    def __init__(self, folder: str | Path, every_n_steps: Positive = 500) -> None:
        self.table, self.every_n_steps = StepLog(Path(folder) / "tensors.csv"), every_n_steps
        self.hooks = ExitStack()
        self.seen: dict[str, Tensor] = {}

    def due(self, trainer: Trainer) -> bool:
        """Return True if this step is to be measured."""
        return trainer.global_step % self.every_n_steps == 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, BaseModule)
        self.hooks.close()
        # torch has no public name for whether a module is compiled. Hooks would compile it once more, without effect.
        if self.due(trainer) and all(part._compiled_call_impl is None for part in pl_module.network.modules()):
            self.seen = self.hooks.enter_context(activations(pl_module.network, DEPTH))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, BaseModule)
        if not self.due(trainer):
            return
        self.hooks.close()
        tensors = {n: t for n, t in module_tensors(pl_module.network).items() if t.numel() >= SMALLEST}
        tensors |= {f"{name}.output": tensor for name, tensor in self.seen.items()}
        self.seen = {}
        values = TensorValues()
        if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
            for name, tensor in tensors.items():  # one by one: a device may not hold all of them
                track_tensor_values({name: full_tensor(tensor)}, trainer.global_step, values)
        elif trainer.is_global_zero:
            track_tensor_values(tensors, trainer.global_step, values)
        if trainer.is_global_zero and values.rows:
            rows = [{key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in values.rows]
            self.table.add(trainer.global_step, *rows)
            self.table.save()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.hooks.close()
