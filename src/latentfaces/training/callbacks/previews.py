"""Preview images during training."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.evaluation.grids import save_grid
from latentfaces.training.base_module import BaseModule
from latentfaces.training.callbacks.dashboard import dashboards
from latentfaces.training.callbacks.ema import averaged_weights
from latentfaces.training.checkpoint import full_disk_survived

COLUMNS = 8


class Previews(Callback):
    """Write a grid of previews after each validation, and log it to W&B.

    Args:
        folder: folder of the images.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_sharded = pl_module.device_mesh is not None
        if trainer.sanity_checking or not (is_sharded or trainer.is_global_zero):
            return
        assert isinstance(pl_module, BaseModule)
        with averaged_weights(trainer, pl_module), trainer.precision_plugin.val_step_context():
            images = pl_module.preview()
        if not trainer.is_global_zero:
            return
        path = self.folder / f"step_{trainer.global_step:07d}.png"
        with full_disk_survived(trainer, path):
            save_grid(images, path, COLUMNS, source=pl_module.preview_source)
            for logger in dashboards(trainer):
                logger.log_image(f"images/{pl_module.previewed}", [str(path)], step=trainer.global_step)
