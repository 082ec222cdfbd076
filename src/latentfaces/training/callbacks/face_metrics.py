"""Quality and novelty of samples during training of stage 2."""

import time
from typing import Annotated, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from latentfaces.bounds import Fraction, Ge, NonNegativeFloat, Positive
from latentfaces.errors import UserError
from latentfaces.evaluation import FeatureDistance
from latentfaces.evaluation.feature_cache import image_features
from latentfaces.evaluation.features import Features, features_by_name
from latentfaces.evaluation.generation import memorization
from latentfaces.ranks import Ranks, is_main_process
from latentfaces.training.callbacks.best_weights import BestWeights
from latentfaces.training.callbacks.ema import averaged_weights
from latentfaces.training.latent_diffusion_module import LatentDiffusionModule

FEWEST = 32
BY_CHANCE = 4
"""New images have a `memorized_fraction` above 4 / n in at most 3 % of draws of n <= 50 held-out images."""


class FaceMetrics(Callback):
    """Log `val/feature_distance` of samples to held-out images after some validations (see `FeatureDistance`).

    With `max_memorized`, also log `val/memorized_fraction` (see `Memorization`) and stop training when it is too large.
    Weights from then on are never the best ones.

    The samples start from the same noise each time, and use the averaged weights. Training waits for them.

    Args:
        features: as for task=evaluate.
        weights: file of the weights of the feature network, if it cannot be downloaded.
        num_images: number of samples, at least 32.
        batch_size: batch size of sampling.
        every_n_minutes: shortest interval; 0 for each validation.
        num_photos: largest number of held-out images.
        max_memorized: largest `val/memorized_fraction`; None to measure none. With n held-out images the limit is at
            least 4 / n.
    """

    def __init__(
        self,
        features: str = "encoder",
        weights: str | None = None,
        num_images: Annotated[int, Ge(FEWEST)] = 256,
        batch_size: Positive = 64,
        every_n_minutes: NonNegativeFloat = 20.0,
        num_photos: Positive = 1000,
        max_memorized: Fraction | None = None,
    ) -> None:
        self.features, self.weights, self.num_images, self.batch_size = features, weights, num_images, batch_size
        self.every_n_minutes, self.num_photos = every_n_minutes, num_photos
        self.max_memorized, self.limit = max_memorized, 1.0
        self.memorized = 0.0
        """Last `val/memorized_fraction`."""
        self.measured, self.measured_step = -float("inf"), -1
        self.extract: Features | None = None
        self.distance: FeatureDistance | None = None
        self.train_features = self.held_out_features = torch.empty(0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, LatentDiffusionModule):
            raise UserError("callbacks.face_metrics has no effect with model=vae: leave it out")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        pack = data.pack()
        num_held_out = min(len(pack.val_indices), self.num_photos)
        if self.max_memorized is not None:
            self.limit = max(self.max_memorized, BY_CHANCE / num_held_out)
        if not trainer.is_global_zero:
            return
        self.extract = features_by_name(
            self.features, pl_module.autoencoder, self.weights, "callbacks.face_metrics.weights"
        )
        chosen = np.random.default_rng(0).permutation(pack.tuning_indices)[: self.num_photos]
        if len(chosen) >= FEWEST:
            self.distance = FeatureDistance(self.extract, torch.from_numpy(pack.images[np.sort(chosen)]))
        elif self.max_memorized is None:
            raise UserError(
                f"{pack.folder} has {len(pack.val_indices)} held-out images. callbacks.face_metrics compares with half "
                f"of them and needs at least {2 * FEWEST}."
            )
        if self.max_memorized is not None:
            views = [image_features(self.extract, pack, self.batch_size, Ranks(), flip) for flip in (False, True)]
            self.train_features = torch.stack([view[pack.train_indices] for view in views], dim=1)
            self.held_out_features = views[0][pack.val_indices[: self.num_photos]]
            if self.limit > self.max_memorized:
                print(
                    f"With {num_held_out} held-out images val/memorized_fraction is coarse: training stops above "
                    f"{self.limit:.2f}. Hold out more for a smaller limit, as with data.val_every=2."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.memorized > self.limit:
            self.stop(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before `BestWeights` writes. The weights after the last step may be validated after trainer.fit.
        if trainer.sanity_checking or (trainer.state.fn != "fit" and self.max_memorized is None):
            return
        assert isinstance(pl_module, LatentDiffusionModule)
        values = self.measure(trainer, pl_module)
        for logger in trainer.loggers if values else ():
            logger.log_metrics(values, step=trainer.global_step)
        if self.max_memorized is not None:
            self.memorized = trainer.strategy.broadcast(values.get("val/memorized_fraction", self.memorized))
            if self.memorized > self.limit:
                self.stop(trainer)

    def measure(self, trainer: Trainer, module: LatentDiffusionModule) -> dict[str, float]:
        """Return the metrics, if they are due. They are on rank 0."""
        is_sharded = module.device_mesh is not None
        if not (is_sharded or trainer.is_global_zero):
            return {}
        is_last = self.max_memorized is not None and (trainer.should_stop or trainer.state.fn != "fit")
        is_due = is_last or time.monotonic() - self.measured >= 60 * self.every_n_minutes
        if is_sharded:  # all ranks sample together, by the clock of rank 0
            is_due = trainer.strategy.broadcast(is_due)
        if self.measured_step == trainer.global_step or not is_due:
            return {}
        with averaged_weights(trainer, module), trainer.precision_plugin.val_step_context():
            faces = self.faces(module)
        self.measured, self.measured_step = time.monotonic(), trainer.global_step
        if not trainer.is_global_zero:
            return {}
        values = {} if self.distance is None else {"val/feature_distance": self.distance(faces)}
        if self.max_memorized is not None:
            assert self.extract is not None
            found = memorization(self.extract(faces), self.train_features, self.held_out_features)
            values["val/memorized_fraction"] = found.memorized_fraction
        return values

    def faces(self, module: LatentDiffusionModule) -> Tensor:
        """Return samples (num_images, 3, R, R) uint8."""
        assert module.latent_shape is not None
        generator = torch.Generator().manual_seed(module.seed)
        noise = torch.randn(self.num_images, *module.latent_shape, generator=generator)
        return torch.cat([module.faces_from(part, generator) for part in noise.split(self.batch_size)])

    def stop(self, trainer: Trainer) -> None:
        """Stop training with the best weights so far.

        Raises:
            UserError: there are none.
        """
        found = f"val/memorized_fraction is {self.memorized:.2f} at step {trainer.global_step}, above {self.limit:.2f}"
        best = next(c for c in trainer.callbacks if isinstance(c, BestWeights))  # type: ignore[attr-defined]
        if best.best == float("inf"):
            raise UserError(f"{found}, in the first validation. Add images, or lower trainer.val_check_interval.")
        if not best.closed and is_main_process():
            print(
                f"{found}: training stops, and earlier weights stay the best. To continue, raise "
                "callbacks.face_metrics.max_memorized."
            )
        best.closed = trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":  # the next job of a sweep needs the memory
            self.extract = self.distance = None

    def state_dict(self) -> dict[str, Any]:
        return {} if self.max_memorized is None else {"memorized": self.memorized}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.memorized = state_dict["memorized"]
