"""Peers of the comparisons: networks of the same size, and a step of stage 1 as in latent-diffusion."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from latentfaces.autoencoder import PatchDiscriminator, adaptive_weight, discriminator_loss, generator_loss

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function from images to reconstructions and the KL in nats per image."""


def diffusers_vae(channels: int = 64) -> nn.Module:
    """Return an `AutoencoderKL`, R -> R/4, 4 channels. Its decoder has one more block per level than its encoder."""
    from diffusers import AutoencoderKL  # type: ignore[import-not-found]

    return AutoencoderKL(
        block_out_channels=(channels, 2 * channels, 4 * channels),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=min(32, channels // 4),
    )


def reconstruct_by(vae: nn.Module) -> Reconstruct:
    """Return a function that encodes, samples and decodes as diffusers does."""

    def reconstruct(images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(images).latent_dist
        return vae.decode(posterior.sample()).sample, posterior.kl().mean()

    return reconstruct


def diffusers_unet(width: int = 64, side: int = 16) -> nn.Module:
    """Return a `UNet2DModel` of 4 channels with the heads and the time modulation of Dhariwal & Nichol 2021."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=min(64, 2 * width),
        norm_num_groups=min(32, width // 4),
        resnet_time_scale_shift="scale_shift",
    )


class PlainDiTBlock(nn.Module):
    """Block of LayerNorm, attention, GELU layer and adaLN-Zero (Peebles & Xie 2023, figure 3)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def attend(self, tokens: Tensor) -> Tensor:
        """Map tokens (b, n, width) to tokens."""
        b, n, width = tokens.shape
        qkv = self.qkv(tokens).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).reshape(b, n, width))

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate1 * self.attend(self.norms[0](tokens) * (1 + scale1) + shift1)
        return tokens + gate2 * self.feed_forward(self.norms[1](tokens) * (1 + scale2) + shift2)


class PlainDiT(nn.Module):
    """Diffusion transformer of the paper, without labels and without a learned variance.

    Args:
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads.
        side: of the latents, which have 4 channels; patches are 2 x 2.
    """

    def __init__(self, width: int = 384, depth: int = 12, num_heads: int = 6, side: int = 16) -> None:
        super().__init__()
        self.embed_patch = nn.Conv2d(4, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(1, (side // 2) ** 2, width), requires_grad=False)
        self.embed_time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(PlainDiTBlock(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, 16)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        frequencies = 10_000 ** (-torch.arange(128, device=t.device) / 128)
        angles = t[:, None].float() * frequencies
        embedding = self.embed_time(torch.cat([angles.cos(), angles.sin()], dim=-1))
        patches = self.embed_patch(x_t)
        tokens = patches.flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        out = self.head(self.norm(tokens) * (1 + scale) + shift).transpose(1, 2)
        return F.pixel_shuffle(out.unflatten(2, patches.shape[2:]), 2)


def noise_prediction_loss(network: Callable[[Tensor, Tensor], Tensor], x0: Tensor) -> Tensor:
    """Return the mean squared error of predicted noise on 1,000 steps of linear betas (Ho et al. 2020, eq. 14)."""
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, device=x0.device)).cumprod(0)
    t, noise = torch.randint(1000, (len(x0),), device=x0.device), torch.randn_like(x0)
    kept = kept[t, None, None, None]
    return F.mse_loss(network(kept.sqrt() * x0 + (1 - kept).sqrt() * noise, t).float(), noise)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within this context the parameters need no gradient, as in Lightning for those of another optimizer."""
    asking = [p for p in module.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


class TwoForwards:
    """Step of stage 1 in latent-diffusion: two optimizers, each of which computes the complete loss.

    `training_step` is called once for each optimizer, and images pass the VAE and the perceptual network each time. The
    adaptive weight needs gradients through both networks, in addition to the backward pass.

    Args:
        vae: the autoencoder.
        reconstruct: function that encodes, samples and decodes.
        last_layer: weights where gradients are compared.
        distortion: function from images and reconstructions to the loss without KL and adversary.
        discriminator: the discriminator.
        kl_weight: weight of the KL of an image in nats.
        weight: weight of the adversarial loss.
    """

    def __init__(
        self,
        vae: nn.Module,
        reconstruct: Reconstruct,
        last_layer: Tensor,
        distortion: Callable[[Tensor, Tensor], Tensor],
        discriminator: PatchDiscriminator,
        kl_weight: float = 1e-6,
        weight: float = 0.5,
    ) -> None:
        self.vae, self.reconstruct, self.last_layer = vae, reconstruct, last_layer
        self.distortion, self.discriminator = distortion, discriminator
        self.kl_weight, self.weight = kl_weight, weight
        self.optimizers = [AdamW(part.parameters(), lr=1e-5, betas=(0.5, 0.9)) for part in (vae, discriminator)]

    def loss_of_vae(self, images: Tensor) -> Tensor:
        """Return the loss of the first optimizer."""
        reconstructions, kl = self.reconstruct(images)
        distortion = self.distortion(images, reconstructions)
        adversarial = generator_loss(self.discriminator(reconstructions))
        others, ours = (
            torch.autograd.grad(term, self.last_layer, retain_graph=True)[0] for term in (distortion, adversarial)
        )
        weight = self.weight * adaptive_weight(others, ours, 1e4)
        return distortion + self.kl_weight * kl + weight * adversarial

    def loss_of_discriminator(self, images: Tensor) -> Tensor:
        """Return the loss of the second optimizer."""
        reconstructions, _ = self.reconstruct(images)
        self.distortion(images, reconstructions)  # which its loss works out before it asks for whom
        return discriminator_loss(self.discriminator(images), self.discriminator(reconstructions.detach()))

    def __call__(self, images: Tensor, bfloat16: bool) -> None:
        """Take both halves of a step."""
        losses = (self.loss_of_vae, self.discriminator), (self.loss_of_discriminator, self.vae)
        for optimizer, (loss_of, other) in zip(self.optimizers, losses, strict=True):
            with frozen(other):
                with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
                    loss = loss_of(images)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
