"""Pictures of how training goes."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from latentfaces.evaluation.grids import save_grid
from latentfaces.training.base_module import BaseModule
from latentfaces.training.callbacks.ema import averaged_weights


class Previews(Callback):
    """After each validation a grid into `folder` and, where the run has one, the W&B dashboard.

    Args:
        folder: where to.
        columns: pictures in a row.
    """

    def __init__(self, folder: str | Path, columns: int = 8) -> None:
        self.folder, self.columns = Path(folder), columns

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        one_has_all_weights = pl_module.device_mesh is None
        if trainer.sanity_checking or (one_has_all_weights and not trainer.is_global_zero):
            return
        assert isinstance(pl_module, BaseModule)
        with averaged_weights(trainer, pl_module), trainer.precision_plugin.val_step_context():
            images = pl_module.preview()
        if not trainer.is_global_zero:
            return
        path = self.folder / f"step_{trainer.global_step:07d}.png"
        save_grid(images, path, self.columns)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image(f"images/{pl_module.previewed}", [str(path)], step=trainer.global_step)
