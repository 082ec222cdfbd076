"""LightningModule of stage 2."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentfaces.annealing import WarmupDecay
from latentfaces.autoencoder import VAE, PretrainedVAE
from latentfaces.diffusion import Augmentation, Conditioning, Denoiser, DenoisingLoss, Sampler
from latentfaces.pipeline import FacePipeline
from latentfaces.training.base_module import BaseModule, OptimizerFactory
from latentfaces.training.checkpoint import save_weights

Batch = Tensor | tuple[Tensor, Tensor]
"""Moments (b, 2, c, h, w), or moments and labels (b, L), NaN where unknown."""
NUM_PREVIEWS, NUM_COMPARED, MAX_LABELS = 16, 4, 6
"""Samples of a preview, then those for each of two values of a label, and the number of labels."""
MAX_MEASURED = 10_000
"""Training images whose latents give the statistics of a pretrained VAE."""


class LatentDiffusionModule(BaseModule):
    """Train a denoiser on cached posteriors (b, 2, c, h, w): mean and std; with `conditioning`, also labels (b, L).

    Args:
        autoencoder: trained VAE, which is not trained further.
        denoiser: network and noise schedule.
        loss: training loss.
        sampler: sampler of the previews.
        augmentation: augmentation of latents in training, for a network with its `label_channels`, or None.
        optimizer, lr_schedule, seed: see `BaseModule`.
        labels: names of the labels to condition on, None for all of the data's; train.py makes `conditioning` of them.
        conditioning: labels that the denoiser sees, for a network with their `label_channels`, or None.
    """

    previewed = "samples"

    def __init__(
        self,
        autoencoder: VAE,
        denoiser: Denoiser,
        loss: DenoisingLoss,
        sampler: Sampler,
        augmentation: Augmentation | None,
        optimizer: OptimizerFactory,
        lr_schedule: WarmupDecay,
        seed: int,
        labels: Sequence[str] | None = None,
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule, seed)
        self.autoencoder = autoencoder.requires_grad_(False)
        self.denoiser, self.loss, self.sampler, self.augmentation = denoiser, loss, sampler, augmentation
        self.conditioning = conditioning
        self.label_rows: Tensor | None = None
        """Labels (N, L) of the training images, from which those of samples are drawn."""
        self.latent_shape: torch.Size | None = None

    @property
    def network(self) -> Denoiser:
        return self.denoiser

    def exports(self) -> Mapping[str, nn.Module]:
        return {"best_denoiser": self.denoiser}

    def shards(self) -> Mapping[nn.Module, tuple[str, ...]]:
        return {self.denoiser.network: ("heads",) if self.denoiser.has_auxiliary else ()}

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (b, 3, R, R) in [-1, 1] to the mean and std of the posterior, for the latent cache."""
        posterior = self.autoencoder.to(images.device).encode(images)
        return posterior.mean, posterior.std

    def setup(self, stage: str) -> None:
        """Measure the statistics of a pretrained VAE, once, in the latent cache."""
        if stage != "fit" or not isinstance(self.autoencoder, PretrainedVAE) or self.autoencoder.measured:
            return
        dataset = self.trainer.datamodule.train_dataset  # type: ignore[attr-defined]
        rows = np.linspace(0, len(dataset) - 1, min(len(dataset), MAX_MEASURED)).round().astype(int)
        self.autoencoder.measure(dataset[row][None] for row in rows)
        save_weights(self.autoencoder, Path(self.trainer.default_root_dir) / "checkpoints" / "best_vae.pth")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # The VAE does not change, and the run has it in best_vae.pth.
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith("autoencoder.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        vae = {f"autoencoder.{key}": value for key, value in self.autoencoder.state_dict().items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **vae}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        moments, labels = unpack(batch)
        mean, std = moments.unbind(1)
        # A new sample each time, so that the denoiser sees the full posterior.
        x0 = self.autoencoder.normalize(mean + std * torch.randn_like(mean))
        parts: list[Tensor] = []
        if self.augmentation is not None:
            x0, parameters = self.augmentation(x0)
            parts.append(parameters)
        if self.conditioning is not None:
            parts.append(self.conditioning(self.conditioning.drop(labels)))
        losses = self.loss(self.denoiser, x0, condition=torch.cat(parts, dim=1) if parts else None)
        names = ("train/loss", "train/auxiliary_loss")
        self.log_terms({name: head.mean() for name, head in zip(names, losses, strict=False)})
        return self.loss.total(losses)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.latent_shape = unpack(batch)[0].shape[2:]
        self.evaluate(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "test")

    def evaluate(self, batch: Batch, batch_idx: int, stage: str) -> None:
        """Log the loss at noise and times that are the same in every validation, with all labels."""
        moments, labels = unpack(batch)
        x0 = self.autoencoder.normalize(moments[:, 0])
        generator = torch.Generator().manual_seed(batch_idx * self.trainer.world_size + self.global_rank)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        t = self.loss.time_sampler.sized(x0.shape)(len(x0), self.denoiser.schedule, x0.device, generator)
        condition = None if self.conditioning is None else self.conditioning(labels)
        loss = self.loss(self.denoiser, x0, t, noise, condition)[0].mean()
        self.log(f"{stage}/loss", loss, batch_size=len(x0), sync_dist=True)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return samples (n, 3, R, R) uint8, from the same noise each time.

        For each of the first labels follow samples of two values, with noise and other labels of the first samples.
        """
        assert self.latent_shape is not None
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(NUM_PREVIEWS, *self.latent_shape, generator=generator)
        labels = self.random_labels(NUM_PREVIEWS, generator)
        rows = [self.faces_from(noise, generator, labels)]
        for index, label in enumerate(self.conditioning.labels[:MAX_LABELS] if self.conditioning is not None else []):
            assert labels is not None
            values = labels[:NUM_COMPARED].repeat(2, 1)
            values[:, index] = torch.tensor(label.contrast).repeat_interleave(NUM_COMPARED)
            rows.append(self.faces_from(noise[:NUM_COMPARED].repeat(2, 1, 1, 1), generator, values))
        return torch.cat(rows)

    def random_labels(self, number: int, generator: torch.Generator) -> Tensor | None:
        """Return the labels (number, L) of random training images; None for a denoiser without labels."""
        if self.label_rows is None:
            return None
        return self.label_rows[torch.randint(len(self.label_rows), (number,), generator=generator)]

    @torch.no_grad()
    def faces_from(self, noise: Tensor, generator: torch.Generator, labels: Tensor | None = None) -> Tensor:
        """Map noise (n, c, h, w) to samples (n, 3, R, R) uint8 on the CPU, with the sampler of the previews.

        Args:
            noise: initial noise.
            generator: CPU generator, for labels and a sampler that adds noise.
            labels: labels (n, L), by default those of random training images.
        """
        labels = self.random_labels(len(noise), generator) if labels is None else labels
        resolution = noise.shape[-1] * self.autoencoder.downsampling
        pipeline = FacePipeline(
            self.autoencoder, self.denoiser, resolution, self.device, conditioning=self.conditioning
        )
        return pipeline.images(
            noise.to(self.device),
            self.sampler,
            lambda: torch.randn(noise.shape, generator=generator).to(self.device),
            pipeline.condition(labels),
        )


def unpack(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return moments and labels of a batch; a batch without labels has no columns of them."""
    moments, labels = (batch, batch.new_empty(len(batch), 0)) if isinstance(batch, Tensor) else batch
    return moments, labels
