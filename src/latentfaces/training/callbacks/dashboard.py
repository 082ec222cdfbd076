"""Weights & Biases."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from latentfaces.ranks import local_tensor
from latentfaces.run import CONFIG
from latentfaces.training.base_module import BaseModule
from latentfaces.training.callbacks.best_weights import BestWeights

BEST = {"val/loss": "min", "val/psnr": "max", "val/ssim": "max"}
"""Summary of a value in the table of runs, in addition to its last value."""
NUM_BINS, MOST_VALUES = 64, 100_000


class DashboardLogger(WandbLogger):
    """Lightning's W&B logger, silent if it is offline.

    Args:
        offline: write to disk only; train.py decides about "auto".
        log_model: upload checkpoints, "all" of them as soon as they are written.
        options: others of Lightning's logger.
    """

    def __init__(
        self,
        offline: bool | Literal["auto"] = False,
        log_model: bool | Literal["all"] = False,
        **options: Any,
    ) -> None:
        options |= {"offline": offline, "log_model": log_model}
        if offline:
            import wandb

            # W&B reads its environment once a process, perhaps before Lightning sets WANDB_MODE.
            options["mode"] = "offline"
            if "WANDB_SILENT" not in os.environ:
                options["settings"] = wandb.Settings(silent=True)
        super().__init__(**options)
        self._wandb_init.pop("anonymous", None)  # W&B warns about this argument, which Lightning always passes


class Dashboard(Callback):
    """Add speed, histograms, best values, the verdict and best weights to a run on W&B.

    Args:
        folder: folder of the run.
        upload_weights: upload the best weights and the config as one artifact, `<name>-<stage>`.
    """

    def __init__(self, folder: str | Path, upload_weights: bool = False) -> None:
        self.folder, self.upload_weights = Path(folder), upload_weights
        self.since, self.steps = time.monotonic(), 0
        self.gradients_due = True

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for run in runs(trainer):
            for name, best in BEST.items():
                run.define_metric(name, step_metric="trainer/global_step", summary=f"{best},last")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since, self.steps = time.monotonic(), 0

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends_step and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            images = self.steps * trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
            seconds = max(time.monotonic() - self.since, 1e-9)
            self.send(trainer, {"speed/images_per_second": images / seconds})
            self.since, self.steps = time.monotonic(), 0

    @rank_zero_only
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, BaseModule)
        if self.gradients_due:  # once after each validation
            gradients = {n: p.grad for n, p in pl_module.network.named_parameters() if p.grad is not None}
            self.send(trainer, histograms("gradients", gradients))
            self.gradients_due = False

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, BaseModule)
        best = next((c for c in trainer.callbacks if isinstance(c, BestWeights)), None)  # type: ignore[attr-defined]
        values: dict[str, Any] = {} if best is None else {"val/best_loss": best.best}
        if trainer.state.fn == "fit":
            values |= histograms("weights", {n: p.detach() for n, p in pl_module.network.named_parameters()})
        self.send(trainer, values)
        if (verdict := pl_module.verdict()) is not None:
            for run in runs(trainer):
                run.summary["verdict"] = verdict
        self.since, self.steps = time.monotonic(), 0  # without the validation
        self.gradients_due = True

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.upload_weights:
            return
        import wandb

        assert isinstance(pl_module, BaseModule)
        for run in runs(trainer):
            artifact = wandb.Artifact(f"{run.name}-{run.job_type}".replace("/", "-"), type="model")
            for path in [self.folder / "checkpoints" / f"{name}.pth" for name in pl_module.exports()]:
                artifact.add_file(str(path))
            artifact.add_file(str(self.folder / CONFIG))
            run.log_artifact(artifact)

    @staticmethod
    def send(trainer: Trainer, values: Mapping[str, Any]) -> None:
        """Log values to W&B only."""
        for logger in dashboards(trainer):
            logger.log_metrics(values, step=trainer.global_step)


def dashboards(trainer: Trainer) -> list[WandbLogger]:
    """Return the W&B loggers of a trainer."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def runs(trainer: Trainer) -> list[Any]:
    """Return the W&B runs of a trainer."""
    return [logger.experiment for logger in dashboards(trainer)]


def histograms(section: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a histogram for each part of a network, down to two names.

    Args:
        section: section of the panels.
        tensors: tensors by the names of the parameters.
    """
    import wandb

    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(".".join(name.split(".")[:-1][:2]) or name, []).append(tensor)
    return {f"{section}/{part}": wandb.Histogram(np_histogram=histogram(group)) for part, group in parts.items()}


def histogram(tensors: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and edges of the finite values, or of evenly spaced ones if there are many."""
    tensors = [local_tensor(tensor) for tensor in tensors]  # of a sharded tensor, the rows of rank 0
    stride = -(-sum(tensor.numel() for tensor in tensors) // MOST_VALUES)
    values = torch.cat([tensor.flatten()[::stride].float() for tensor in tensors]).cpu()
    return np.histogram(values[values.isfinite()].numpy(), bins=NUM_BINS)
