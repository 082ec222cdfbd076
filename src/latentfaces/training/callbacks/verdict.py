"""Verdict on the latents after each validation."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from latentfaces.training.base_module import BaseModule
from latentfaces.training.callbacks.dashboard import runs


class Verdict(Callback):
    """Print the verdict if it is new and recommends a change. Keep the last one in the summary on W&B."""

    def __init__(self) -> None:
        self.last: str | None = None

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, BaseModule)
        verdict = pl_module.verdict()
        if trainer.sanity_checking or verdict is None or verdict == self.last:
            return
        self.last = verdict
        if not pl_module.healthy:
            print(verdict)
        for run in runs(trainer):
            run.summary["verdict"] = verdict
