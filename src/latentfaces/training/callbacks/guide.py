"""The weights of an early moment, as a file: a weaker version of the denoiser for autoguidance."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from latentfaces.errors import UserError
from latentfaces.run import GUIDE
from latentfaces.training.callbacks.ema import averaged_weights
from latentfaces.training.checkpoint import full_disk_survived, save_weights
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule


class GuideWeights(Callback):
    """Writes `guide_denoiser.pth`, the averaged weights when `share` of the training is over (Karras et al. 2024b).

    Once a run: one that goes on with a later limit keeps its guide.

    Args:
        folder: where to.
        share: of the training, in (0, 1).

    Raises:
        ValueError: the share is impossible.
    """

    def __init__(self, folder: str | Path, share: float = 1 / 12) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share={share} must be above 0 and below 1")
        self.path, self.share = Path(folder) / f"{GUIDE}.pth", share
        self.written = self.resumed = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, LatentDiffusionModule):
            raise UserError("callbacks.guide has no effect with model=vae: leave it out with ~callbacks.guide")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LatentDiffusionModule)
        if not self.resumed and pl_module.progress() >= self.share:
            self.written = True  # training went by without this callback: today's weights are no early ones
        if not self.written and trainer.is_global_zero:
            self.path.unlink(missing_ok=True)  # of steps that were done by a run killed since then, not by this one

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LatentDiffusionModule)
        if not self.written and pl_module.progress() >= self.share:
            self.written = True
            self.write(trainer, pl_module)

    def write(self, trainer: Trainer, pl_module: LatentDiffusionModule) -> None:
        """Write the file, which appears whole; all ranks must call this."""
        with averaged_weights(trainer, pl_module), full_disk_survived(trainer):
            save_weights(pl_module.denoiser, self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"written": self.written}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.written, self.resumed = state_dict["written"], True
