"""Rows of the speed table that compare a network of latentfaces with a peer."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from ours import built_ldm, composed, equal_vae
from peers import PlainDiT, TwoForwards, diffusers_unet, diffusers_vae, noise_prediction_loss, reconstruct_by
from rows import Rival, Row, Scale, compare, count
from torch import Tensor, nn
from torch.optim import AdamW

from latentfaces.autoencoder import PatchDiscriminator, PerceptualDistance
from latentfaces.cost.step import TrainedModule, TrainingStep
from latentfaces.pipeline import FacePipeline


class PlainStep:
    """Training step of a plain loop.

    Args:
        network: the network to train.
        loss: computes the loss.
    """

    def __init__(self, network: nn.Module, loss: Callable[[], Tensor]) -> None:
        self.loss, self.optimizer = loss, AdamW(network.parameters(), lr=1e-5)
        self.device_type = next(network.parameters()).device.type

    def __call__(self, bfloat16: bool) -> None:
        with torch.autocast(self.device_type, torch.bfloat16, enabled=bfloat16):
            loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def our_rival(module: TrainedModule, batch: Tensor, compiled: bool = False) -> Rival:
    """Return our side of a row."""
    if compiled:
        module.network.compile()
    return Rival(count(module.network), TrainingStep(module, batch))


def vae_step(scale: Scale) -> Row:
    """Return the row of stage 1 without adversary and perceptual loss."""
    images = torch.rand(scale.images, 3, scale.resolution, scale.resolution, device=scale.device) * 2 - 1
    network = diffusers_vae(scale.channels).to(scale.device)
    reconstruct, pixels = reconstruct_by(network), images[0].numel()

    def loss() -> Tensor:
        reconstructions, kl = reconstruct(images)
        return (reconstructions.float() - images).abs().mean() + 1e-6 * kl / pixels

    ours = our_rival(equal_vae(scale.channels), images)
    compiled = our_rival(equal_vae(scale.channels), images, compiled=True).step if scale.compiled else None
    theirs = Rival(count(network), PlainStep(network, loss))
    title = f"VAE step, {scale.images} x {scale.resolution} px, L1 + KL, vs diffusers AutoencoderKL"
    return compare(title, ours, theirs, scale, compiled)


def with_adversary(module: Any, perceptual: PerceptualDistance) -> Any:
    """Return our side of stage 1 with `model/loss=adversarial` and the adversary from the first step."""
    module.loss.perceptual = perceptual
    adversarial = composed("model=vae", "model/loss=adversarial", "model.adversary.start_step=0").model
    module.adversary = instantiate(adversarial.adversary)
    return module


def stage1_rivals(scale: Scale, images: Tensor) -> tuple[Callable[[], Rival], Callable[[], Rival]]:
    """Return factories of both sides."""
    perceptual = PerceptualDistance.untrained(scale.backbone)

    def ours() -> Rival:
        module = with_adversary(equal_vae(scale.channels), perceptual)
        parameters = count(module.network, module.adversary.discriminator)
        return Rival(parameters, TrainingStep(module, images))

    def theirs() -> Rival:
        network = diffusers_vae(scale.channels).to(images.device)
        discriminator = PatchDiscriminator().to(images.device)
        backbone = copy.deepcopy(perceptual.unregistered[0]).to(images.device)

        def distortion(photos: Tensor, reconstructions: Tensor) -> Tensor:
            return (reconstructions - photos).abs().mean() + backbone(photos, reconstructions).mean()

        step = TwoForwards(network, reconstruct_by(network), network.decoder.conv_out.weight, distortion, discriminator)
        return Rival(count(network, discriminator), partial(step, images))

    return ours, theirs


def stage1_step(scale: Scale) -> Row:
    """Return the row of stage 1 with its complete loss."""
    images = torch.rand(scale.images, 3, scale.resolution, scale.resolution, device=scale.device) * 2 - 1
    ours, theirs = stage1_rivals(scale, images)
    title = f"stage-1 step with LPIPS and adversary, {scale.images} x {scale.resolution} px, vs latent-diffusion's"
    return compare(title, ours(), theirs(), scale)


def latent_batches(scale: Scale) -> tuple[Tensor, Tensor]:
    """Return cached posteriors (b, 2, 4, h, w) and their means (b, 4, h, w)."""
    mean = torch.randn(scale.latents, 4, scale.side, scale.side, device=scale.device)
    return torch.stack([mean, 0.1 * torch.ones_like(mean)], dim=1), mean


def unet_step(scale: Scale) -> Row:
    """Return the row of stage 2 with the default U-Net."""
    moments, x0 = latent_batches(scale)
    network = diffusers_unet(scale.channels, scale.side).to(scale.device)
    options = ["model/denoiser=unet_s", f"model.denoiser.network.width={scale.channels}"]
    ours = our_rival(built_ldm(*options), moments)
    compiled = our_rival(built_ldm(*options), moments, compiled=True).step if scale.compiled else None
    loss = partial(noise_prediction_loss, lambda x, t: network(x, t).sample, x0)
    theirs = Rival(count(network), PlainStep(network, loss))
    title = f"UNet step, {scale.latents} x {scale.side}x{scale.side}x4, vs diffusers UNet2DModel"
    return compare(title, ours, theirs, scale, compiled)


def dit_step(scale: Scale) -> Row:
    """Return the row of stage 2 with a DiT."""
    moments, x0 = latent_batches(scale)
    network = PlainDiT(scale.width, scale.depth, scale.num_heads, scale.side).to(scale.device)
    size = {"width": scale.width, "depth": scale.depth, "num_heads": scale.num_heads}
    options = ["model/denoiser=dit_s", *(f"model.denoiser.network.{key}={value}" for key, value in size.items())]
    ours = our_rival(built_ldm(*options), moments)
    compiled = our_rival(built_ldm(*options), moments, compiled=True).step if scale.compiled else None
    theirs = Rival(count(network), PlainStep(network, partial(noise_prediction_loss, network, x0)))
    title = f"DiT-S/2 step, {scale.latents} x {scale.side}x{scale.side}x4, vs a plain DiT"
    return compare(title, ours, theirs, scale, compiled)


def decoding(scale: Scale) -> Row:
    """Return the row of decoding latents. Ours as shipped is `sample.py precision=bf16`."""
    latents = torch.randn(scale.decoded, 4, scale.resolution // 4, scale.resolution // 4, device=scale.device)
    vae: Any = equal_vae(scale.channels).network.eval().requires_grad_(False)
    pipelines = {b: FacePipeline(vae, None, scale.resolution, scale.device, bfloat16=b) for b in (False, True)}
    network = diffusers_vae(scale.channels).to(scale.device).eval()

    @torch.no_grad()
    def theirs(bfloat16: bool) -> Tensor:
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=bfloat16):
            return network.decode(latents).sample

    def ours(bfloat16: bool) -> Tensor:
        return pipelines[bfloat16].decode(latents)

    parameters = sum(p.numel() for p in vae.decoder.parameters()), sum(p.numel() for p in network.decoder.parameters())
    title = f"decoding {scale.decoded} latents to {scale.resolution} px, vs diffusers AutoencoderKL"
    fewer = replace(scale, rounds=(scale.rounds + 1) // 2)
    return compare(title, Rival(parameters[0], ours), Rival(parameters[1], theirs), fewer)
