"""LightningModule of stage 2."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latentfaces.annealing import WarmupDecay
from latentfaces.autoencoder import VAE, PretrainedVAE
from latentfaces.diffusion import Augmentation, Denoiser, DenoisingLoss, Sampler
from latentfaces.pipeline import FacePipeline
from latentfaces.training.base_module import BaseModule, OptimizerFactory
from latentfaces.training.checkpoint import save_weights

NUM_PREVIEWS = 16
MAX_MEASURED = 10_000
"""Training images whose latents give the statistics of a pretrained VAE."""


class LatentDiffusionModule(BaseModule):
    """Train a denoiser on cached posteriors (b, 2, c, h, w): mean and std.

    Args:
        autoencoder: trained VAE, which is not trained further.
        denoiser: network and noise schedule.
        loss: training loss.
        sampler: sampler of the previews.
        augmentation: augmentation of latents in training, for a network with its `label_channels`, or None.
        optimizer, lr_schedule, seed: see `BaseModule`.
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
    ) -> None:
        super().__init__(optimizer, lr_schedule, seed)
        self.autoencoder = autoencoder.requires_grad_(False)
        self.denoiser, self.loss, self.sampler, self.augmentation = denoiser, loss, sampler, augmentation
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

    def training_step(self, moments: Tensor, batch_idx: int) -> Tensor:
        mean, std = moments.unbind(1)
        # A new sample each time, so that the denoiser sees the full posterior.
        x0 = self.autoencoder.normalize(mean + std * torch.randn_like(mean))
        x0, label = (x0, None) if self.augmentation is None else self.augmentation(x0)
        losses = self.loss(self.denoiser, x0, label=label)
        names = ("train/loss", "train/auxiliary_loss")
        self.log_terms({name: head.mean() for name, head in zip(names, losses, strict=False)})
        return self.loss.total(losses)

    def validation_step(self, moments: Tensor, batch_idx: int) -> None:
        self.latent_shape = moments.shape[2:]
        self.evaluate(moments, batch_idx, "val")

    def test_step(self, moments: Tensor, batch_idx: int) -> None:
        self.evaluate(moments, batch_idx, "test")

    def evaluate(self, moments: Tensor, batch_idx: int, stage: str) -> None:
        """Log the loss at noise and times that are the same in every validation."""
        x0 = self.autoencoder.normalize(moments[:, 0])
        generator = torch.Generator().manual_seed(batch_idx * self.trainer.world_size + self.global_rank)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        u = (torch.arange(len(x0)) + torch.rand(len(x0), generator=generator)) / len(x0)
        t = self.loss.time_sampler.sized(x0.shape).inside(u.to(x0), self.denoiser.schedule)
        loss = self.loss(self.denoiser, x0, t, noise)[0].mean()
        self.log(f"{stage}/loss", loss, batch_size=len(x0), sync_dist=True)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return samples (n, 3, R, R) uint8, from the same noise each time."""
        assert self.latent_shape is not None
        generator = torch.Generator().manual_seed(self.seed)
        return self.faces_from(torch.randn(NUM_PREVIEWS, *self.latent_shape, generator=generator), generator)

    @torch.no_grad()
    def faces_from(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Map noise (n, c, h, w) to samples (n, 3, R, R) uint8 on the CPU, with the sampler of the previews.

        Args:
            noise: initial noise.
            generator: CPU generator, for a sampler that adds noise.
        """
        pipeline = FacePipeline(
            self.autoencoder, self.denoiser, noise.shape[-1] * self.autoencoder.downsampling, self.device
        )
        return pipeline.images(
            noise.to(self.device),
            self.sampler,
            lambda: torch.randn(noise.shape, generator=generator).to(self.device),
        )
