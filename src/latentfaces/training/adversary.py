"""The discriminator of stage 1 and its training, beside the VAE's."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from latentfaces.autoencoder import PatchDiscriminator, adaptive_weight, discriminator_loss, generator_loss
from latentfaces.training.base_module import OptimizerFactory
from latentfaces.training.optimizers import adopt


class AdversarialTerm(NamedTuple):
    """Adversarial term of a batch of reconstructions."""

    gradient: Tensor
    """Of all distortion, the adversarial term included, at the reconstructions: (b, 3, H, W)."""
    loss: Tensor
    """The adversarial term as it enters the objective, a scalar."""
    logged: dict[str, Tensor]
    """Scalars for the log."""


class Adversary:
    """A discriminator that learns to tell photos from reconstructions, and whose gradient sharpens the decoder.

    It has its own optimiser, which Lightning does not know of, so that a step remains a step of the VAE: in
    `global_step`, `max_steps`, annealing, accumulation and clipping. It is no submodule either: the VAE's optimiser,
    average, weight files and gradient synchronisation never touch it, and its own gradients are averaged over ranks
    here.

    One forward pass of the VAE serves both (the usual way takes two). The discriminator therefore learns from the
    reconstructions of before the VAE's step.

    Args:
        discriminator: the network.
        optimizer: parameters -> optimiser, at the peak of the learning rate, which follows the VAE's schedule.
        start_step: training step that it begins with; reconstructions must be good before it helps.
        weight: of the adversarial term, relative to the adaptive weight that makes its gradient as long as the others'.
        max_adaptive_weight: bound of the adaptive weight.
    """

    def __init__(
        self,
        discriminator: PatchDiscriminator,
        optimizer: OptimizerFactory,
        start_step: int = 5000,
        weight: float = 0.5,
        max_adaptive_weight: float = 1e4,
    ) -> None:
        self.discriminator, self.make_optimizer = discriminator, optimizer
        self.start_step, self.weight, self.max_adaptive_weight = start_step, weight, max_adaptive_weight
        self.optimizer: Optimizer | None = None
        self.peak_rates: list[float] = []
        self.restored: dict[str, Any] | None = None
        self.norm: Tensor | None = None
        """Of the gradients once they are averaged over the ranks, until a step is taken with them."""

    def begin(self, device: torch.device) -> None:
        """Make ready on the device, the same on all ranks."""
        # `generator_loss` runs backward through a compiled decoder more than once.
        torch._functorch.config.donated_buffer = False
        self.discriminator.to(device).train()
        self.optimizer = self.make_optimizer(self.discriminator.named_parameters())
        chosen = [dict(group) for group in self.optimizer.param_groups]
        self.peak_rates = [group["lr"] for group in chosen]
        if self.restored is not None:
            self.discriminator.load_state_dict(self.restored["discriminator"])
            self.optimizer.load_state_dict(self.restored["optimizer"])
            for group, values in zip(self.optimizer.param_groups, chosen, strict=True):
                adopt(group, values, self.optimizer.state)
            self.restored = None
        if dist.is_initialized():
            for parameter in self.discriminator.parameters():
                dist.broadcast(parameter.data, src=0)

    def generator_loss(
        self, reconstructions: Tensor, distortion_gradient: Tensor, last_layer: Tensor
    ) -> AdversarialTerm:
        """The adversarial term added to the distortion, by its gradient at the reconstructions.

        Args:
            reconstructions: (b, 3, H, W), with the graph of the VAE behind them.
            distortion_gradient: of the other terms at the reconstructions, (b, 3, H, W).
            last_layer: weights of the decoder's last layer, where gradients are compared.
        """
        leaf = reconstructions.detach().requires_grad_()
        adversarial = generator_loss(self.discriminator(leaf))
        (gradient,) = torch.autograd.grad(adversarial, leaf)
        others, ours = (
            torch.autograd.grad(reconstructions, last_layer, grad.to(reconstructions.dtype), retain_graph=True)[0]
            for grad in (distortion_gradient, gradient)
        )
        adaptive = adaptive_weight(others, ours, self.max_adaptive_weight)
        weight = self.weight * adaptive
        return AdversarialTerm(
            distortion_gradient + weight * gradient,
            weight * adversarial.detach(),
            {"train/adversarial": adversarial.detach(), "train/adaptive_weight": adaptive},
        )

    def discriminator_step(self, images: Tensor, reconstructions: Tensor, share: float) -> dict[str, Tensor]:
        """Add this batch's gradients of the discriminator; scalars for the log.

        Args:
            images: (b, 3, H, W).
            reconstructions: (b, 3, H, W); no gradient goes back to them.
            share: this batch's share of a step, less than 1 where gradients are accumulated.
        """
        both = self.discriminator(torch.cat([images, reconstructions.detach()]))
        real, fake = both.chunk(2)
        loss = discriminator_loss(real, fake)
        (share * loss).backward()
        return {"train/discriminator": loss.detach(), "train/logit_gap": (real.mean() - fake.mean()).detach()}

    def average_gradients(self) -> Tensor | None:
        """Average the gradients added since the last step over the ranks; their norm, None where there are none."""
        gradients = [p.grad for p in self.discriminator.parameters() if p.grad is not None]
        if not gradients:
            return None
        if dist.is_initialized():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_((mean / dist.get_world_size()).view_as(gradient))
        self.norm = nn.utils.get_total_norm(gradients)
        return self.norm

    def drop_gradients(self) -> None:
        """Begin the next step."""
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        self.norm = None

    def step(self, rate: float, clip: float | None) -> None:
        """Take a step with the gradients added since the last one, if any.

        Args:
            rate: learning rate as a multiple of its peak.
            clip: bound of the gradient's norm; 0 or None for none.
        """
        assert self.optimizer is not None
        norm = self.average_gradients() if self.norm is None else self.norm
        if norm is None:
            return
        if clip:
            nn.utils.clip_grads_with_norm_(self.discriminator.parameters(), clip, norm)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * rate
        self.optimizer.step()
        self.drop_gradients()

    def state_dict(self) -> dict[str, Any]:
        """Network and optimiser."""
        assert self.optimizer is not None
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there when training begins."""
        self.restored = state_dict
