"""LightningModule of stage 1."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentfaces.annealing import AnnealingSchedule, Constant, WarmupDecay
from latentfaces.autoencoder import VAE, Distortion, PretrainedVAE, VAELoss
from latentfaces.errors import UserError, warn
from latentfaces.evaluation import HEALTHY, LatentHealth, reconstruction_metrics, verdict
from latentfaces.marks import EDITED
from latentfaces.training.adversary import Adversary
from latentfaces.training.base_module import BaseModule, OptimizerFactory

NUM_PREVIEWS = 8


def require_range(name: str, schedule: AnnealingSchedule | None, low: float, high: float) -> None:
    """Raise a UserError if a schedule starts or ends outside of [low, high]."""
    for end in ("start", "end"):
        value = getattr(schedule, end, low)
        if not low <= value <= high:
            raise UserError(f"model.{name}.{end}={value} must be from {low} to {high}")


class VAEModule(BaseModule):
    """Train a VAE on images (b, 3, R, R) in [-1, 1].

    Args:
        autoencoder: the VAE.
        loss: training loss.
        kl_weight: weight of the KL divergence by training step.
        skip_dropout: probability, by training step, that a sample is decoded without skip connections.
        adversary: discriminator, or None.
        optimizer, lr_schedule, seed: see `BaseModule`.
    """

    previewed, preview_source = "reconstructions", EDITED

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
        if isinstance(self.autoencoder, PretrainedVAE):
            raise UserError("strategy=fsdp cannot shard a pretrained VAE. Use strategy=ddp.")
        return {self.autoencoder.encoder: ("with_skips",), self.autoencoder.decoder: ()}

    def training_step(self, images: Tensor, batch_idx: int) -> Tensor:
        kl_weight = self.kl_weight(self.global_step)
        skip_dropout = self.skip_dropout(self.global_step)
        reconstructions, posterior, latents = self.autoencoder(images, skip_dropout)
        total, logged = self.weigh_distortion(images, reconstructions)
        if self.autoencoder.has_variance:
            rate = self.loss.rate(posterior, images)
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
        """Return the distortion, with the adversarial term if there is one, and scalars for the log."""
        if self.adversary is None or self.global_step < self.adversary.start_step:
            distortion = self.loss.distortion(images, reconstructions)
            return distortion.total, self.logged(distortion)
        leaf = reconstructions.detach().requires_grad_()
        distortion = self.loss.distortion(images, leaf)
        (gradient,) = torch.autograd.grad(distortion.total, leaf)
        adversarial = self.adversary.generator_loss(reconstructions, gradient, self.autoencoder.last_layer)
        learned = self.adversary.discriminator_step(images, reconstructions, 1 / self.trainer.accumulate_grad_batches)
        value = distortion.total.detach() + adversarial.loss
        # It has the value and the gradient of the sum, although each gradient was computed only once.
        through = (reconstructions * adversarial.gradient).sum()
        return through - through.detach() + value, self.logged(distortion) | adversarial.logged | learned

    @staticmethod
    def logged(distortion: Distortion) -> dict[str, Any]:
        """Return the terms by their names in the log."""
        return {f"train/{name}": value for name, value in distortion.terms.items()}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.adversary is not None:
            self.adversary.begin(self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        adversary = self.adversary
        if adversary is not None and not adversary.begun and self.global_step >= adversary.start_step:
            adversary.begun = True
            self.forget_best()  # the adversary trades pixel errors for sharpness: earlier weights must not win

    def on_train_end(self) -> None:
        if self.adversary is not None and not self.adversary.begun:
            warn(
                f"the adversary never began: training ended at step {self.global_step}, before "
                f"model.adversary.start_step={self.adversary.start_step}. Lower it, or train for longer."
            )

    def teardown(self, stage: str) -> None:
        if self.adversary is not None:
            self.adversary.end()
        if self.loss.perceptual is not None:
            self.loss.perceptual.network_on(torch.device("cpu"))

    def other_norms(self) -> Mapping[str, Tensor | None]:
        return {} if self.adversary is None else {"the discriminator's gradient": self.adversary.average_gradients()}

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        if self.adversary is not None:
            self.step_adversary()

    def step_adversary(self) -> None:
        """Take a step of the adversary, unless the VAE's step is skipped."""
        assert self.adversary is not None
        if self.finite.skipped:
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
            self.previews = images[:NUM_PREVIEWS].clone()  # the data module reuses the memory of the batch
        self.evaluate(images, "val")

    def on_test_epoch_start(self) -> None:
        self.health.reset()

    def test_step(self, images: Tensor, batch_idx: int) -> None:
        self.evaluate(images, "test")

    def evaluate(self, images: Tensor, stage: str) -> None:
        """Log loss, PSNR (dB) and SSIM of reconstructions, and add them to the statistics of the latents."""
        posterior, skips = self.autoencoder.encode_with_skips(images)
        reconstructions = self.autoencoder.decode(posterior.mode())
        distortion = self.loss.distortion(images, reconstructions)
        values = {"loss": distortion.total, **distortion.terms, **reconstruction_metrics(images, reconstructions)}
        if self.autoencoder.has_variance:
            rate = self.loss.rate(posterior, images)
            # The weight at the end: with that of this step, a run would look best before its KL counts.
            values |= {"loss": distortion.total + self.kl_weight.end * rate.total, "kl": rate.kl}
        if self.autoencoder.skip_connections:
            for name, strength in (("with_half_skips", 0.5), ("with_skips", 1.0)):
                detailed = self.autoencoder.decode(posterior.mode(), [strength * skip for skip in skips])
                metrics = reconstruction_metrics(images, detailed)
                values |= {f"{metric}_{name}": value for metric, value in metrics.items()}
        self.log_dict(
            {f"{stage}/{name}": value for name, value in values.items()}, batch_size=len(images), sync_dist=True
        )
        self.health.update(posterior, images, reconstructions)

    def on_validation_epoch_end(self) -> None:
        self.health.reduce(self.device, self.trainer.strategy.reduce)
        # Measured in every validation, so that an exported VAE always has the statistics of its latents.
        mean, std = self.health.mean_and_std()
        self.autoencoder.latent_mean.copy_(mean)
        self.autoencoder.latent_std.copy_(std)
        self.findings = self.health.values()
        self.log_dict({f"health/{name}": value for name, value in self.findings.items()}, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self.health.reduce(self.device, self.trainer.strategy.reduce)
        self.findings = self.health.values()  # of the best weights, over all held-out images

    def verdict(self) -> str | None:
        if not self.findings:
            return None
        weight, end = self.kl_weight(self.global_step), self.kl_weight.end
        return verdict(self.findings, end if weight >= end else 0.0)

    @property
    def healthy(self) -> bool:
        return self.verdict() in (None, HEALTHY)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out images, their reconstructions and, for a VAE with skips, those with skips (n, 3, H, W)."""
        assert self.previews is not None
        posterior, skips = self.autoencoder.encode_with_skips(self.previews)
        rows = [self.previews, self.autoencoder.decode(posterior.mode())]
        if self.autoencoder.skip_connections:
            rows.append(self.autoencoder.decode(posterior.mode(), skips))
        return torch.cat(rows)
