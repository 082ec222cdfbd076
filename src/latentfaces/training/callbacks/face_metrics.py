"""Quality of samples during training of stage 2."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from latentfaces.errors import UserError
from latentfaces.evaluation import FeatureDistance
from latentfaces.evaluation.features import features_by_name
from latentfaces.training.callbacks.ema import averaged_weights
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule

FEWEST = 32


class FaceMetrics(Callback):
    """Log `val/feature_distance` of samples to held-out images after some validations (see `FeatureDistance`).

    The samples start from the same noise each time, and use the averaged weights. Training waits for at most
    `max_seconds` and one batch: if that is too short for `num_images`, fewer are measured.

    Args:
        features: as for task=evaluate.
        weights: file of the weights of the feature network, if it cannot be downloaded.
        num_images: number of samples, at least 32.
        batch_size: batch size of sampling.
        max_seconds: longest time for sampling.
        every_n_minutes: shortest interval.
        num_photos: largest number of held-out images.
    """

    def __init__(
        self,
        features: str = "encoder",
        weights: str | None = None,
        num_images: int = 256,
        batch_size: int = 64,
        max_seconds: float = 60.0,
        every_n_minutes: float = 20.0,
        num_photos: int = 1000,
    ) -> None:
        if num_images < FEWEST:
            raise ValueError(f"num_images={num_images} must be at least {FEWEST} to measure by")
        self.features, self.weights, self.num_images, self.batch_size = features, weights, num_images, batch_size
        self.max_seconds, self.every_n_minutes, self.num_photos = max_seconds, every_n_minutes, num_photos
        self.distance: FeatureDistance | None = None
        self.measured = -float("inf")

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, LatentDiffusionModule):
            raise UserError("callbacks.face_metrics has no effect with model=vae: leave it out")
        network = features_by_name(self.features, pl_module.autoencoder, self.weights, "callbacks.face_metrics.weights")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pack = data.pack()
        chosen = np.random.default_rng(0).permutation(pack.tuning_indices)[: self.num_photos]
        if len(chosen) < FEWEST:
            raise UserError(
                f"{pack.folder} has {len(pack.val_indices)} held-out images. callbacks.face_metrics compares with half "
                f"of them and needs at least {2 * FEWEST}."
            )
        self.distance = FeatureDistance(network, torch.from_numpy(pack.images[np.sort(chosen)]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_sharded = pl_module.device_mesh is not None
        if trainer.sanity_checking or trainer.state.fn != "fit" or not (is_sharded or trainer.is_global_zero):
            return
        assert isinstance(pl_module, LatentDiffusionModule)
        # With sharded weights all ranks sample together, by the clock of rank 0.
        agreed: Callable[[bool], bool] = trainer.strategy.broadcast if is_sharded else bool
        if not agreed(time.monotonic() - self.measured >= 60 * self.every_n_minutes):
            return
        with averaged_weights(trainer, pl_module), trainer.precision_plugin.val_step_context():
            faces = self.faces(pl_module, agreed)
        self.measured = time.monotonic()
        if not trainer.is_global_zero:
            return
        assert self.distance is not None
        if len(faces) < FEWEST:
            print(
                f"callbacks.face_metrics: {len(faces)} faces in {self.max_seconds:g} seconds are too few to measure. "
                "Raise callbacks.face_metrics.max_seconds."
            )
            return
        for logger in trainer.loggers:
            logger.log_metrics({"val/feature_distance": self.distance(faces)}, step=trainer.global_step)

    def faces(self, module: LatentDiffusionModule, agreed: Callable[[bool], bool] = bool) -> Tensor:
        """Return samples (n, 3, R, R) uint8, as many as the time allows."""
        assert module.latent_shape is not None
        generator = torch.Generator().manual_seed(module.seed)
        noise = torch.randn(self.num_images, *module.latent_shape, generator=generator)
        started, made = time.monotonic(), []
        for part in noise.split(self.batch_size):
            made.append(module.faces_from(part, generator))
            if agreed(time.monotonic() - started >= self.max_seconds):
                break
        return torch.cat(made)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.distance = None  # the next job of a sweep needs the memory
