"""Weights of an early training step, for autoguidance."""

from pathlib import Path
from typing import Annotated, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.bounds import Interval
from latentfaces.errors import UserError
from latentfaces.run import GUIDE
from latentfaces.training.callbacks.ema import averaged_weights
from latentfaces.training.checkpoint import full_disk_survived, save_weights
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule

MIN_STEPS = 200
"""Fewest steps of a guide, unless they are more than a quarter of the training.

Of 800 steps, a guide of 67 gave a kid_effnet of 223, one of 200 gave 142.
"""


class GuideWeights(Callback):
    """Write `guide_denoiser.pth`, the averaged weights at a fraction of training (Karras et al. 2024b).

    A short training writes it later: after `MIN_STEPS` steps or a quarter of its length, whichever is first. It is
    written once: a run that is resumed with a later limit, or stopped early, keeps its guide.

    Args:
        folder: folder of the file.
        share: fraction of the training, in (0, 1).
    """

    def __init__(self, folder: str | Path, share: Annotated[float, Interval(gt=0, lt=1)] = 1 / 12) -> None:
        self.path, self.share = Path(folder) / f"{GUIDE}.pth", share
        self.written = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, LatentDiffusionModule):
            raise UserError("callbacks.guide has no effect with model=vae: leave it out with ~callbacks.guide")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, LatentDiffusionModule)
        if not self.written and self.is_due(trainer.global_step, pl_module.progress()):
            pl_module.finite.check()
            self.written = True
            with averaged_weights(trainer, pl_module), full_disk_survived(trainer, self.path):
                save_weights(pl_module.denoiser, self.path)

    def is_due(self, num_steps: int, progress: float) -> bool:
        """Return whether to write the guide after `num_steps` steps, at the fraction `progress` of the training."""
        return progress >= self.share and (num_steps >= MIN_STEPS or progress >= 0.25)

    def state_dict(self) -> dict[str, Any]:
        return {"written": self.written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.written = state_dict["written"]
