"""What both LightningModules share: optimiser, learning rate, seeds, and logging that costs little."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from latentfaces.annealing import WarmupDecay
from latentfaces.ranks import whole
from latentfaces.training.distributed.sharding import shard
from latentfaces.training.nan_guard import NonFiniteGuard, Photos
from latentfaces.training.optimizers import adopt
from latentfaces.training.time_limit import TimeLimit

GRADIENT = "the gradient's norm"
OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what a step draws from, as `torch.manual_seed` does, which also asks all kinds of devices that there are."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class BaseModule(LightningModule, ABC):
    """A stage of training.

    Args:
        optimizer: named parameters -> optimiser, at the peak of the learning rate.
        lr_schedule: the learning rate as a multiple of that peak.
        seed: of everything that is drawn in a step.
    """

    previewed: ClassVar[str]
    """What the previews show, in one word."""

    def __init__(self, optimizer: OptimizerFactory, lr_schedule: WarmupDecay, seed: int) -> None:
        super().__init__()
        self.make_optimizer, self.lr_schedule, self.seed = optimizer, lr_schedule, seed
        self.findings: dict[str, float] = {}
        """What the verdict rests on."""
        self.finite = NonFiniteGuard()
        self.resumed_at: int | None = None
        """The step of the checkpoint that training goes on from, if any."""
        self.started, self.seconds_before = time.monotonic(), 0.0
        """When this session of the training began, and how long the earlier ones took."""
        self.chosen: list[dict[str, Any]] = []
        """The optimiser's groups of parameters as they were made."""

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
        """A few pictures that show how training goes: (n, 3, H, W) in [-1, 1], the same ones each time."""

    def verdict(self) -> str | None:
        """Return a one-sentence summary of the last validation, if there is one."""
        return None

    @property
    def healthy(self) -> bool:
        """Whether the verdict asks for nothing to be changed."""
        return True

    def forget_best(self) -> None:
        """Let the callbacks that keep or wait for the lowest loss begin anew: from now on it means something else."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping):
                callback.best_score, callback.wait_count = torch.tensor(float("inf")), 0
            elif isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
                callback.best_k_models, callback.kth_best_model_path, callback.best_model_score = {}, "", None
            elif hasattr(callback, "forget"):
                callback.forget()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            for part, methods in self.shards().items():
                shard(part, self.device_mesh["data_parallel"], methods)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer((name, p) for name, p in self.network.named_parameters() if p.requires_grad)
        self.chosen = [dict(group) for group in optimizer.param_groups]
        schedule = LambdaLR(optimizer, lambda step: self.lr_schedule(step, self.progress()))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def progress(self) -> float:
        """Share of training that is over, in [0, 1]: by steps, epochs or time, whichever is furthest."""
        trainer = self.trainer
        shares = [0.0]
        if trainer.max_steps > 0:
            shares.append(trainer.global_step / trainer.max_steps)
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            batches_per_epoch = max(trainer.num_training_batches, 1)
            batch = trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
            shares.append((trainer.current_epoch + batch / batches_per_epoch) / trainer.max_epochs)
        shares += [limit.progress for limit in self.time_limits()]
        return min(max(shares), 1.0)

    def time_limits(self) -> list[TimeLimit]:
        """Return the callback of `trainer.max_time`, if there is one."""
        return [callback for callback in self.trainer.callbacks if isinstance(callback, TimeLimit)]  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        # A checkpoint brings its learning rate, weight decay and the like; those that were chosen since are to count.
        for number, chosen in enumerate(self.chosen):
            optimizer = self.trainer.optimizers[0]
            group = optimizer.param_groups[number]
            schedule = self.trainer.lr_scheduler_configs[0].scheduler
            adopt(group, chosen, optimizer.state)
            if group["initial_lr"] != chosen["lr"]:
                group["lr"] *= chosen["lr"] / group["initial_lr"]
                group["initial_lr"] = schedule.base_lrs[number] = chosen["lr"]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Every draw is a function of (seed, rank, batches so far): ranks differ, and a resumed run draws the same.
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        mixed = (self.seed * 1_000_003 + self.global_rank) * 1_000_000_007 + batches
        seed_draws(mixed % 2**63, self.device)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # 1, or NaN where the loss is no number: then no gradient is one either, on any rank.
        super().backward(loss, *args, gradient=1 + 0 * loss.detach(), **kwargs)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # The library refuses to clip for fused optimisers, for the sake of float16 scaling, which is not used here.
        # The optimiser's own list: walking through the modules of a network costs more than the norm of a small one.
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = whole(nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None))
        self.finite.close(self.global_step, {GRADIENT: norm, **self.other_norms()}, self.device)
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/gradient_norm", norm)
        if self.finite.left_out:
            for parameter in parameters:  # an optimiser passes by what has no gradient
                parameter.grad = None
            return
        if not gradient_clip_val:  # 0, as in the library, means no bound
            return
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        else:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def other_norms(self) -> Mapping[str, Tensor | None]:
        """Return norms of the gradients of our own optimizers, equal on all ranks."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.finite.check()
        checkpoint["num_skipped"] = self.finite.num_skipped
        checkpoint["seconds"] = self.seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.resumed_at = checkpoint.get("global_step")
        self.finite.num_skipped = checkpoint.get("num_skipped", 0)
        self.seconds_before = max(self.seconds_before, checkpoint.get("seconds", 0.0))

    @property
    def seconds(self) -> float:
        """Seconds that all sessions of the training have taken."""
        return self.seconds_before + time.monotonic() - self.started

    def log_terms(self, terms: Mapping[str, Tensor | float]) -> None:
        """Log scalars of a training step, every `trainer.log_every_n_steps`: each key costs half a millisecond.

        Raises:
            NonFiniteError: one is no number, and steps are not to be left out.
        """
        self.finite.add(terms, self.photos())
        if self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        values = {name: float(v.detach() if isinstance(v, Tensor) else v) for name, v in terms.items()}
        self.finite.refuse_terms(self.global_step, values)
        if self.finite.num_skipped:
            values["train/skipped_steps"] = float(self.finite.num_skipped)
        self.log_dict(values)

    def photos(self) -> Photos:
        """Looks up what the batch at hand is made of."""
        data: Any = getattr(self.trainer, "datamodule", None)
        return partial(data.photos, data.rows) if hasattr(data, "photos") else list
