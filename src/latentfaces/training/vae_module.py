"""Stage 1 under Lightning."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from latentfaces.annealing import AnnealingSchedule, WarmupDecay
from latentfaces.autoencoder import VAE, DiagonalGaussian, VAELoss
from latentfaces.evaluation import reconstruction_metrics
from latentfaces.training.stage import OptimizerFactory, Stage

NUM_PREVIEWS = 8


class VAEModule(Stage):
    """Trains a VAE on images (b, 3, R, R) in [-1, 1].

    Args:
        autoencoder: the VAE.
        loss: its objective.
        kl_weight: weight of the KL by training step.
        optimizer, lr_schedule, seed: see `Stage`.
    """

    def __init__(
        self,
        autoencoder: VAE,
        loss: VAELoss,
        kl_weight: AnnealingSchedule,
        optimizer: OptimizerFactory,
        lr_schedule: WarmupDecay,
        seed: int,
    ) -> None:
        super().__init__(optimizer, lr_schedule, seed)
        self.autoencoder, self.loss, self.kl_weight = autoencoder, loss, kl_weight
        self.previews: Tensor | None = None
        self.moments = LatentMoments(autoencoder.latent_channels)

    @property
    def network(self) -> VAE:
        return self.autoencoder

    def exports(self) -> Mapping[str, nn.Module]:
        vae = self.autoencoder
        return {"best_vae": vae, "best_encoder": vae.encoder, "best_decoder": vae.decoder}

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        kl_weight = self.kl_weight(self.global_step)
        terms = self.loss(images, *self.autoencoder(images), kl_weight)
        self.log_terms(
            {
                "train/loss": terms.total,
                "train/reconstruction": terms.reconstruction,
                "train/kl": terms.kl,
                "train/kl_weight": kl_weight,
            }
        )
        return terms.total

    def on_validation_epoch_start(self) -> None:
        self.moments.reset()

    def validation_step(self, images: Tensor, batch_idx: int) -> None:
        if self.previews is None:
            self.previews = images[:NUM_PREVIEWS].clone()  # the data module uses the batch's memory again
        posterior = self.evaluate(images, "val")
        self.moments.update(posterior)

    def test_step(self, images: Tensor, batch_idx: int) -> None:
        self.evaluate(images, "test")

    def evaluate(self, images: Tensor, stage: str) -> DiagonalGaussian:
        """Log loss, PSNR (dB) and SSIM of the reconstructions from the posterior's mode."""
        posterior = self.autoencoder.encode(images)
        reconstructions = self.autoencoder.decode(posterior.mode())
        # The weight at rest, not this step's: else an annealed run would look best before its KL counts.
        terms = self.loss(images, reconstructions, posterior, self.kl_weight.end)
        values = {"loss": terms.total, "reconstruction": terms.reconstruction, "kl": terms.kl}
        values |= reconstruction_metrics(images, reconstructions)
        self.log_dict(
            {f"{stage}/{name}": value for name, value in values.items()}, batch_size=len(images), sync_dist=True
        )
        return posterior

    def on_validation_epoch_end(self) -> None:
        # Measured anew in every validation, so that an exported VAE always knows its own latents.
        self.moments.write_to(self.autoencoder, self.trainer.strategy.reduce)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Held-out photos, and below them their reconstructions."""
        assert self.previews is not None
        reconstructions = self.autoencoder.decode(self.autoencoder.encode(self.previews).mode())
        return torch.cat([self.previews, reconstructions])


class LatentMoments:
    """Mean and standard deviation of latents per channel, from posteriors, batch by batch.

    Args:
        channels: channels of a latent.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.sums = torch.zeros(3, self.channels, dtype=torch.float64)

    def update(self, posterior: DiagonalGaussian) -> None:
        """Add a batch. E[x^2] of a draw is mean^2 + variance: no noise is needed to know it."""
        mean, second = posterior.mean, posterior.mean.square() + posterior.logvar.exp()
        counts = torch.full_like(mean, 1.0)
        self.sums += torch.stack([v.double().sum((0, 2, 3)).cpu() for v in (counts, mean, second)])

    def write_to(self, vae: VAE, reduce_over_ranks: Callable[..., Tensor]) -> None:
        """Set `latent_mean` and `latent_std` of the VAE, from the batches of all ranks."""
        device = vae.latent_mean.device
        sums = self.sums.float() if device.type == "mps" else self.sums  # Apple's GPUs have no float64
        count, mean, second = reduce_over_ranks(sums.to(device), reduce_op="sum")
        mean, second = mean / count, second / count
        vae.latent_mean.copy_(mean[:, None, None])
        vae.latent_std.copy_((second - mean.square()).clamp(min=1e-12).sqrt()[:, None, None])
