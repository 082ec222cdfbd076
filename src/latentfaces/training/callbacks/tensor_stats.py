"""What goes on inside the network, into tensors.csv."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from latentfaces.evaluation.tensor_values import TensorValues, activations, module_tensors, track_tensor_values
from latentfaces.ranks import whole
from latentfaces.training.base_module import BaseModule


class TensorStats(Callback):
    """Statistics of weights, gradients and activations (but of compiled networks) every few steps, see `TensorValues`.

    A look takes a tenth of the time of a step (8 million values, the VAE of faces64_cpu with batches of 32 on a CPU):
    0.02 % of training at every 500 steps.

    Args:
        folder: where tensors.csv goes: the run's.
        every_n_steps: between two looks.
        depth: activations of parts down to so many names below the network; weights are all looked at.
        smallest: weights with fewer values, biases and norms, are left out.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 500, depth: int = 2, smallest: int = 1024) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.path, self.every_n_steps = Path(folder) / "tensors.csv", every_n_steps
        self.depth, self.smallest = depth, smallest
        self.hooks = ExitStack()
        self.seen: dict[str, Tensor] = {}
        self.looked_at = -1

    def due(self, trainer: Trainer) -> bool:
        """Whether this step is looked at, which is done once."""
        return trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self.looked_at

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.path.exists():
            return
        kept = TensorValues.read(self.path)  # of a run that went further before it was killed
        kept.rows = [row for row in kept.rows if float(row["step"]) < trainer.global_step]
        self.path.unlink()
        kept.write(self.path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, BaseModule)
        self.hooks.close()
        # A compiled network would be compiled once more for the hooks, and then go without them.
        if self.due(trainer) and all(part._compiled_call_impl is None for part in pl_module.network.modules()):
            self.seen = self.hooks.enter_context(activations(pl_module.network, self.depth))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, BaseModule)
        if not self.due(trainer):
            return
        self.looked_at = trainer.global_step
        self.hooks.close()
        tensors = {n: t for n, t in module_tensors(pl_module.network).items() if t.numel() >= self.smallest}
        tensors |= {f"{name}.output": tensor for name, tensor in self.seen.items()}
        self.seen = {}
        if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
            values = TensorValues()  # one by one: all of them together may be more than a device holds
            for name, tensor in tensors.items():
                track_tensor_values({name: whole(tensor)}, trainer.global_step, values)
        elif trainer.is_global_zero:
            values = track_tensor_values(tensors, trainer.global_step)
        if trainer.is_global_zero:
            values.write(self.path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.hooks.close()
