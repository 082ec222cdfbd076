"""Stage 1 under Lightning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentfaces.annealing import AnnealingSchedule, Constant, WarmupDecay
from latentfaces.autoencoder import VAE, DiagonalGaussian, Distortion, VAELoss
from latentfaces.errors import UserError
from latentfaces.evaluation import HEALTHY, LatentHealth, reconstruction_metrics, verdict
from latentfaces.training.adversary import Adversary
from latentfaces.training.base_module import BaseModule, OptimizerFactory

NUM_PREVIEWS = 8


def require_range(name: str, schedule: AnnealingSchedule | None, low: float, high: float) -> None:
    """Check where a schedule starts and ends.

    Raises:
        UserError: outside of [low, high].
    """
    for end in ("start", "end"):
        value = getattr(schedule, end, low)
        if not low <= value <= high:
            raise UserError(f"model.{name}.{end}={value} must be from {low} to {high}")


class VAEModule(BaseModule):
    """Trains a VAE on images (b, 3, R, R) in [-1, 1].

    Args:
        autoencoder: the VAE.
        loss: its objective.
        kl_weight: weight of the KL by training step.
        skip_dropout: probability, by training step, that a sample is decoded without skip connections.
        adversary: a discriminator beside it, if any.
        optimizer, lr_schedule, seed: see `BaseModule`.
    """

    previewed = "reconstructions"

    def __init__(
        self,
        autoencoder: VAE,
        loss: VAELoss,
        kl_weight: AnnealingSchedule,
        optimizer: OptimizerFactory,
        lr_schedule: WarmupDecay,
        seed: int,
        skip_dropout: AnnealingSchedule | None = None,
        adversary: Adversary | None = None,
    ) -> None:
        super().__init__(optimizer, lr_schedule, seed)
        require_range("kl_weight", kl_weight, 0, float("inf"))
        require_range("skip_dropout", skip_dropout, 0, 1)
        self.autoencoder, self.loss, self.kl_weight = autoencoder, loss, kl_weight
        self.skip_dropout = skip_dropout or Constant(end=0.5)
        self.adversary = adversary
        self.previews: Tensor | None = None
        self.health = LatentHealth(autoencoder.latent_channels)

    @property
    def network(self) -> VAE:
        return self.autoencoder

    def exports(self) -> Mapping[str, nn.Module]:
        vae = self.autoencoder
        return {"best_vae": vae, "best_encoder": vae.encoder, "best_decoder": vae.decoder}

    def shards(self) -> Mapping[nn.Module, tuple[str, ...]]:
        return {self.autoencoder.encoder: ("with_skips",), self.autoencoder.decoder: ()}

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        kl_weight = self.kl_weight(self.global_step)
        skip_dropout = self.skip_dropout(self.global_step)
        reconstructions, posterior, latents = self.autoencoder(images, skip_dropout)
        rate = self.loss.rate(posterior, images)
        total, logged = self.weigh_distortion(images, reconstructions)
        total = total + kl_weight * rate.total
        logged |= {"train/kl": rate.kl, "train/kl_weight": kl_weight}
        if self.autoencoder.skip_connections:
            logged["train/skip_dropout"] = skip_dropout
        if self.loss.equivariance_weight:
            logged["train/equivariance"] = self.loss.equivariance(images, latents, self.autoencoder.decode)
            total = total + self.loss.equivariance_weight * logged["train/equivariance"]
        self.log_terms({"train/loss": total, **logged})
        return total

    def weigh_distortion(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The distortion with the adversary's term, where there is one, and what to log of it."""
        if self.adversary is None or self.global_step < self.adversary.start_step:
            distortion = self.loss.distortion(images, reconstructions)
            return distortion.total, self.logged(distortion)
        leaf = reconstructions.detach().requires_grad_()
        distortion = self.loss.distortion(images, leaf)
        (gradient,) = torch.autograd.grad(distortion.total, leaf)
        adversarial = self.adversary.generator_loss(reconstructions, gradient, self.autoencoder.decoder.last_layer)
        learned = self.adversary.discriminator_step(images, reconstructions, 1 / self.trainer.accumulate_grad_batches)
        value = distortion.total.detach() + adversarial.loss
        # This has the value of the objective, and its gradient, each term of which was computed once.
        through = (reconstructions * adversarial.gradient).sum()
        return through - through.detach() + value, self.logged(distortion) | adversarial.logged | learned

    @staticmethod
    def logged(distortion: Distortion) -> dict[str, Any]:
        """Its terms by their names in the log."""
        return {f"train/{name}": value for name, value in distortion.terms.items()}

    def on_fit_start(self) -> None:
        if self.adversary is not None:
            self.adversary.begin(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.adversary is not None and self.global_step == self.adversary.start_step > 0:
            self.forget_best()  # the adversary trades pixels for sharpness: what was best before must not win

    def other_norms(self) -> Mapping[str, Tensor | None]:
        return {} if self.adversary is None else {"the discriminator's gradient": self.adversary.average_gradients()}

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        if self.adversary is not None:
            self.step_adversary()

    def step_adversary(self) -> None:
        """Its step, beside the VAE's, and left out as that one."""
        assert self.adversary is not None
        if self.finite.left_out:
            self.adversary.drop_gradients()
            return
        rate = self.lr_schedule(self.global_step, self.progress())
        self.adversary.step(rate, self.trainer.gradient_clip_val)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.adversary is not None and self.adversary.optimizer is not None:
            checkpoint["adversary"] = self.adversary.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.adversary is not None and "adversary" in checkpoint:
            self.adversary.load_state_dict(checkpoint["adversary"])

    def on_validation_epoch_start(self) -> None:
        self.health.reset()

    def validation_step(self, images: Tensor, batch_idx: int) -> None:
        if self.previews is None:
            self.previews = images[:NUM_PREVIEWS].clone()  # the data module uses the batch's memory again
        self.health.update(*self.evaluate(images, "val"))

    def on_test_epoch_start(self) -> None:
        self.health.reset()

    def test_step(self, images: Tensor, batch_idx: int) -> None:
        self.health.update(*self.evaluate(images, "test"))

    def evaluate(self, images: Tensor, stage: str) -> tuple[DiagonalGaussian, Tensor, Tensor]:
        """Log loss, PSNR (dB) and SSIM of the reconstructions from the posterior's mode; it, the images, and these."""
        posterior, skips = self.autoencoder.encode_with_skips(images)
        reconstructions = self.autoencoder.decode(posterior.mode())
        distortion, rate = self.loss.distortion(images, reconstructions), self.loss.rate(posterior, images)
        # The weight at rest, not this step's: else an annealed run would look best before its KL counts.
        values = {"loss": distortion.total + self.kl_weight.end * rate.total, "kl": rate.kl, **distortion.terms}
        values |= reconstruction_metrics(images, reconstructions)
        if self.autoencoder.skip_connections:
            for name, strength in (("with_half_skips", 0.5), ("with_skips", 1.0)):
                detailed = self.autoencoder.decode(posterior.mode(), [strength * skip for skip in skips])
                metrics = reconstruction_metrics(images, detailed)
                values |= {f"{metric}_{name}": value for metric, value in metrics.items()}
        self.log_dict(
            {f"{stage}/{name}": value for name, value in values.items()}, batch_size=len(images), sync_dist=True
        )
        return posterior, images, reconstructions

    def on_validation_epoch_end(self) -> None:
        self.health.reduce(self.device, self.trainer.strategy.reduce)
        # Measured anew in every validation, so that an exported VAE always knows its own latents.
        mean, std = self.health.mean_and_std()
        self.autoencoder.latent_mean.copy_(mean)
        self.autoencoder.latent_std.copy_(std)
        self.findings = self.health.values()
        self.log_dict({f"health/{name}": value for name, value in self.findings.items()})

    def on_test_epoch_end(self) -> None:
        self.health.reduce(self.device, self.trainer.strategy.reduce)
        self.findings = self.health.values()  # of the best weights, over all held-out photos

    def verdict(self) -> str | None:
        return verdict(self.findings) if self.findings else None

    @property
    def healthy(self) -> bool:
        return self.verdict() in (None, HEALTHY)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Held-out photos, and below them their reconstructions, from latents alone and, where it can, with skips."""
        assert self.previews is not None
        posterior, skips = self.autoencoder.encode_with_skips(self.previews)
        rows = [self.previews, self.autoencoder.decode(posterior.mode())]
        if self.autoencoder.skip_connections:
            rows.append(self.autoencoder.decode(posterior.mode(), skips))
        return torch.cat(rows)
