"""Discriminator of stage 1 and its training."""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from latentfaces.autoencoder import PatchDiscriminator, adaptive_weight, discriminator_loss, generator_loss
from latentfaces.bounds import Natural, NonNegativeFloat, PositiveFloat
from latentfaces.training.base_module import OptimizerFactory
from latentfaces.training.optimizers import adapt_state


class AdversarialTerm(NamedTuple):
    """Adversarial term of a batch of reconstructions.

    Args:
        gradient: gradient of the distortion and the adversarial term at the reconstructions, (b, 3, H, W).
        loss: weighted adversarial term, a scalar.
        logged: scalars for the log.
    """

    gradient: Tensor
    loss: Tensor
    logged: dict[str, Tensor]


class Adversary:
    """Discriminator between images and reconstructions, and its optimizer.

    Lightning does not know the optimizer, so that a step is a step of the VAE: in `global_step`, `max_steps`,
    annealing, accumulation and clipping. The discriminator is no submodule: the VAE's optimizer, average, weight files
    and gradient synchronization never touch it. Its gradients are averaged over ranks here.

    One forward pass of the VAE serves both, instead of the usual two. So the discriminator learns from reconstructions
    before the VAE's step.

    Args:
        discriminator: the network.
        optimizer: maps named parameters to an optimizer with the peak learning rate. It follows the VAE's schedule.
        start_step: first training step with the adversarial term, once reconstructions are good enough.
        weight: weight of the adversarial term, relative to the adaptive weight that equalizes gradient norms.
        max_adaptive_weight: upper bound of the adaptive weight.
    """

    def __init__(
        self,
        discriminator: PatchDiscriminator,
        optimizer: OptimizerFactory,
        start_step: Natural = 5000,
        weight: NonNegativeFloat = 0.5,
        max_adaptive_weight: PositiveFloat = 1e4,
    ) -> None:
        self.discriminator, self.make_optimizer = discriminator, optimizer
        self.start_step, self.weight, self.max_adaptive_weight = start_step, weight, max_adaptive_weight
        self.optimizer: Optimizer | None = None
        self.peak_rates: list[float] = []
        self.restored: dict[str, Any] | None = None
        self.norm: Tensor | None = None
        """Norm of the gradients after `average_gradients`, until the next step."""
        self.begun = False
        """True once a step has had the adversarial term."""

    def begin(self, device: torch.device) -> None:
        """Create the optimizer and move to the device, with equal weights on all ranks."""
        # `generator_loss` runs backward through a compiled decoder more than once. torch has no public name for it.
        torch._functorch.config.donated_buffer = False
        self.discriminator.to(device)
        self.optimizer = self.make_optimizer(self.discriminator.named_parameters())
        self.optimizer.register_load_state_dict_pre_hook(adapt_state)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        if self.restored is not None:
            self.discriminator.load_state_dict(self.restored["discriminator"])
            self.optimizer.load_state_dict(self.restored["optimizer"])
            self.restored = None
        if dist.is_initialized():
            for parameter in self.discriminator.parameters():
                dist.broadcast(parameter.data, src=0)

    def generator_loss(
        self, reconstructions: Tensor, distortion_gradient: Tensor, last_layer: Tensor
    ) -> AdversarialTerm:
        """Return the adversarial term of reconstructions.

        Args:
            reconstructions: (b, 3, H, W), with the graph of the VAE.
            distortion_gradient: gradient of the other terms at the reconstructions, (b, 3, H, W).
            last_layer: weights of the decoder's last layer, at which gradient norms are compared.
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
        """Add this batch's gradients of the discriminator. Return scalars for the log.

        Args:
            images: (b, 3, H, W).
            reconstructions: (b, 3, H, W). They get no gradient.
            share: fraction of a step, less than 1 if gradients are accumulated.
        """
        both = self.discriminator(torch.cat([images, reconstructions.detach()]))
        real, fake = both.chunk(2)
        loss = discriminator_loss(real, fake)
        (share * loss).backward()
        return {"train/discriminator": loss.detach(), "train/logit_gap": (real.mean() - fake.mean()).detach()}

    def average_gradients(self) -> Tensor | None:
        """Average the gradients over ranks. Return their norm, or None if there are none."""
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
        """Delete the gradients."""
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        self.norm = None

    def step(self, rate: float, clip: float | None) -> None:
        """Take an optimizer step, if there are gradients.

        Args:
            rate: learning rate as a multiple of the peak.
            clip: upper bound of the gradient norm; 0 or None for none.
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
        """Return the state of network and optimizer."""
        assert self.optimizer is not None
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "begun": self.begun,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, which `begin` restores."""
        self.restored = state_dict
        self.begun = state_dict["begun"]

    def end(self) -> None:
        """Free the memory of the device, as Lightning does for the VAE."""
        self.discriminator.cpu()
        self.optimizer = None
