"""Base class of both LightningModules: optimizer, learning rate, seeds and logging."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from latentfaces.annealing import WarmupDecay
from latentfaces.marks import GENERATED, Source
from latentfaces.ranks import full_tensor, is_main_process
from latentfaces.training.distributed.sharding import shard
from latentfaces.training.nan_guard import ImageNames, NonFiniteGuard
from latentfaces.training.optimizers import adapt_state
from latentfaces.training.time_limit import TimeLimit

OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and the device. `torch.manual_seed` takes 0.1 ms: it looks for every device."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class BaseModule(LightningModule, ABC):
    """LightningModule of one stage.

    Args:
        optimizer: maps named parameters to an optimizer with the peak learning rate.
        lr_schedule: learning rate as a multiple of the peak.
        seed: seed of the random numbers of training steps.
    """

    previewed: ClassVar[str]
    """Name of the previews in logs."""
    preview_source: ClassVar[Source] = GENERATED
    """Source type of the previews."""

    def __init__(self, optimizer: OptimizerFactory, lr_schedule: WarmupDecay, seed: int) -> None:
        super().__init__()
        self.make_optimizer, self.lr_schedule, self.seed = optimizer, lr_schedule, seed
        self.findings: dict[str, float] = {}
        """Values that the verdict is based on."""
        self.finite = NonFiniteGuard()
        self.objective: dict[str, str] = {}
        """Config keys and values that define the validation loss."""
        self.changed: list[str] = []
        """Changes of `objective` since the checkpoint."""
        self.resumed_at: int | None = None
        """Step of the checkpoint, if training was resumed."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """Network that is trained, averaged and exported."""

    @abstractmethod
    def exports(self) -> Mapping[str, nn.Module]:
        """Weight files by name, without `.pth`, and the modules whose weights they hold."""

    def shards(self) -> Mapping[nn.Module, tuple[str, ...]]:
        """Return the parts of the network that strategy=fsdp shards, with their methods besides `forward`."""
        return {self.network: ()}

    @abstractmethod
    def preview(self) -> Tensor:
        """Return example images (n, 3, H, W), in [-1, 1] or uint8, of the same inputs each time."""

    def verdict(self) -> str | None:
        """Return a one-sentence summary of the last validation, if there is one."""
        return None

    @property
    def healthy(self) -> bool:
        """False if the verdict recommends a change."""
        return True

    def forget_best(self) -> None:
        """Reset the lowest loss and the patience of all callbacks, because the validation loss has a new meaning."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "forget"):
                callback.forget()

    def on_fit_start(self) -> None:
        if self.changed:
            self.forget_best()
            if is_main_process():
                print(f"val/loss has a new meaning ({'; '.join(self.changed)}). Best weights and patience start again.")

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            for part, methods in self.shards().items():
                shard(part, self.device_mesh["data_parallel"], methods)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer((name, p) for name, p in self.network.named_parameters() if p.requires_grad)
        optimizer.register_load_state_dict_pre_hook(adapt_state)
        schedule = LambdaLR(optimizer, lambda step: self.lr_schedule(step, self.progress()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def progress(self) -> float:
        """Return the completed fraction of training, in [0, 1]: the largest of steps, epochs and time."""
        trainer = self.trainer
        fractions = [0.0]
        if trainer.max_steps > 0:
            fractions.append(trainer.global_step / trainer.max_steps)
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            batches_per_epoch = max(trainer.num_training_batches, 1)
            batch = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
            fractions.append((trainer.current_epoch + batch / batches_per_epoch) / trainer.max_epochs)
        fractions += [callback.progress for callback in trainer.callbacks if isinstance(callback, TimeLimit)]  # type: ignore[attr-defined]
        return min(max(fractions), 1.0)

    def reset_rates(self) -> None:
        """Set the learning rate of the next step by the peak and the limits of this session, not of the checkpoint."""
        for config in self.trainer.lr_scheduler_configs:
            schedule, groups = config.scheduler, config.scheduler.optimizer.param_groups
            schedule.base_lrs = [group["initial_lr"] for group in groups]
            for group in groups:
                group["lr"] = group["initial_lr"] * self.lr_schedule(schedule.last_epoch, self.progress())

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Random numbers depend on (seed, rank, number of batches): ranks differ, and a resumed run repeats them.
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        mixed = (self.seed * 1_000_003 + self.global_rank) * 1_000_000_007 + batches
        seed_draws(mixed % 2**63, self.device)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # The gradient of the loss is 1, or NaN if the loss is not finite. Then all gradients are NaN on every rank.
        super().backward(loss, *args, gradient=1 + 0 * loss.detach(), **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning does not clip for fused optimizers because of float16 scaling, which is not used here.
        # The list of the optimizer: iterating over the modules of a small network takes longer than the norm.
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = full_tensor(nn.utils.get_total_norm([p.grad for p in parameters]))
        self.finite.close(self.global_step, {"the gradient's norm": norm, **self.other_norms()}, self.device)
        if self.is_logged:
            self.log("train/gradient_norm", norm)
        if self.finite.skipped:
            for parameter in parameters:  # optimizers skip parameters without a gradient
                parameter.grad = None
            return
        if gradient_clip_val:  # 0 is no bound, as in Lightning
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def other_norms(self) -> Mapping[str, Tensor | None]:
        """Return gradient norms of optimizers that Lightning does not know. Equal on all ranks."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.finite.check()
        checkpoint["num_skipped"] = self.finite.num_skipped
        checkpoint["objective"] = self.objective

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed_at = checkpoint.get("global_step")
        self.finite.num_skipped = checkpoint.get("num_skipped", 0)
        before = checkpoint.get("objective", self.objective)
        self.changed = [
            f"{key}: {before.get(key)} -> {self.objective.get(key)}"
            for key in sorted(before.keys() | self.objective.keys())
            if before.get(key) != self.objective.get(key)
        ]

    @property
    def is_logged(self) -> bool:
        """Whether Lightning writes the metrics of this step: those of step n - 1, 2n - 1, ..."""
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]

    def log_terms(self, terms: Mapping[str, Tensor | float]) -> None:
        """Log scalars every `trainer.log_every_n_steps`. Each key takes half a millisecond."""
        self.finite.add(terms, self.image_names())
        if not self.is_logged:
            return
        values = {name: float(v.detach() if isinstance(v, Tensor) else v) for name, v in terms.items()}
        if self.finite.num_skipped:
            values["train/skipped_steps"] = float(self.finite.num_skipped)
        self.log_dict(values)

    def image_names(self) -> ImageNames:
        """Return a function that returns the names of the images of this batch."""
        data: Any = getattr(self.trainer, "datamodule", None)
        return partial(data.photos, data.rows) if hasattr(data, "photos") else list
