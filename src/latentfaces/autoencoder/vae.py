"""Variational autoencoder (Kingma & Welling 2014; architecture of Rombach et al. 2022)."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentfaces.autoencoder.posterior import DiagonalGaussian
from latentfaces.bounds import Len, Positive
from latentfaces.nn import (
    Downsample,
    Downsampling,
    ResBlock,
    SelfAttention2d,
    Upsample,
    Upsampling,
    group_norm,
    weights_hash,
    zero_init,
)

Output = Literal["tanh", "linear"]
Skips = list[Tensor]
"""Features of the encoder, finest first: (b, channels, R / p, R / p), p = patch_size, then each half as large."""


@dataclass(frozen=True)
class Shape:
    """Architecture options of encoder and decoder; see `VAE` for the fields."""

    latent_channels: int
    channels: int
    multipliers: Sequence[int]
    num_blocks: int | Sequence[int]
    attention: bool
    attention_levels: Collection[int]
    patch_size: int
    downsample: Downsampling
    upsample: Upsampling
    output: Output
    skip_connections: bool
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        levels = len(self.multipliers)
        if not isinstance(self.num_blocks, int) and len(self.num_blocks) != levels:
            raise ValueError(
                f"num_blocks={list(self.num_blocks)} must be one number, or one for each of {levels} levels"
            )
        beyond = [level for level in self.attention_levels if not 0 <= level < levels]
        if beyond:
            raise ValueError(f"attention_levels={beyond}: with {levels} multipliers levels are 0 to {levels - 1}")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.channels * multiplier for multiplier in self.multipliers]

    @property
    def downsampling(self) -> int:
        """Downsampling factor: pixels per latent along each side."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    def level(self, number: int, in_channels: int) -> nn.Sequential:
        """Build the blocks of one level."""
        out = self.widths[number]
        count = self.num_blocks if isinstance(self.num_blocks, int) else self.num_blocks[number]
        layers: list[nn.Module] = []
        for block in range(count):
            layers.append(ResBlock(in_channels if block == 0 else out, out))
            if number in self.attention_levels:
                layers.append(SelfAttention2d(out))
        return nn.Sequential(*layers)

    def middle(self) -> nn.Sequential:
        """Build the blocks at the lowest resolution: residual, optional attention, residual."""
        width = self.widths[-1]
        between = [SelfAttention2d(width)] if self.attention else []
        return nn.Sequential(ResBlock(width, width), *between, ResBlock(width, width))

    def run(self, layers: nn.Module, x: Tensor) -> Tensor:
        """Return `layers(x)`, with gradient checkpointing if enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            result: Tensor = checkpoint(layers, x, use_reentrant=False)
            return result
        return layers(x)


class Encoder(nn.Module):
    """Encoder: maps images (b, 3, R, R) in [-1, 1] to moments (b, 2 * latent_channels, R / f, R / f)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths
        self.stem = nn.Conv2d(3 * shape.patch_size**2, widths[0], 3, padding=1)
        self.levels = nn.ModuleList(shape.level(n, widths[max(n - 1, 0)]) for n in range(len(widths)))
        self.downs = nn.ModuleList(Downsample(width, shape.downsample) for width in widths[:-1])
        self.middle = shape.middle()
        self.head = nn.Sequential(
            group_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 2 * shape.latent_channels, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.with_skips(images)[0]

    def with_skips(self, images: Tensor) -> tuple[Tensor, Skips]:
        """Return the moments and the features of every level except the coarsest."""
        x = self.stem(F.pixel_unshuffle(images, self.shape.patch_size))
        skips: Skips = []
        for number, level in enumerate(self.levels):
            x = self.shape.run(level, x)
            if number < len(self.downs):
                skips.append(x)
                x = self.downs[number](x)
        return self.head(self.shape.run(self.middle, x)), skips


class Decoder(nn.Module):
    """Decoder: maps latents (b, latent_channels, h, w) and optional skips to images (b, 3, f h, f w) in [-1, 1]."""

    def __init__(self, shape: Shape, skip_widths: Sequence[int]) -> None:
        super().__init__()
        self.shape = shape
        widths = shape.widths
        self.stem = nn.Conv2d(shape.latent_channels, widths[-1], 3, padding=1)
        self.middle = shape.middle()
        numbers = range(len(widths) - 1, -1, -1)
        self.levels = nn.ModuleList(shape.level(n, widths[min(n + 1, len(widths) - 1)]) for n in numbers)
        self.ups = nn.ModuleList(Upsample(width, shape.upsample) for width in reversed(widths[1:]))
        self.head = nn.Sequential(
            group_norm(widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 3 * shape.patch_size**2, 3, padding=1)
        )
        # Added, not concatenated, so that the decoder also works without skips. Their initial contribution is 0.
        into = list(zip(reversed(skip_widths), reversed(widths[1:]), strict=True)) if shape.skip_connections else []
        self.skips = nn.ModuleList(zero_init(nn.Conv2d(fine, coarse, 1, bias=False)) for fine, coarse in into)

    def forward(self, latents: Tensor, skips: Skips | None = None) -> Tensor:
        """Decode latents; `skips` from `Encoder.with_skips` add detail that the latents lack."""
        if skips is not None and not self.shape.skip_connections:
            raise ValueError("This VAE was built without skip connections (model.autoencoder.skip_connections=false).")
        x = self.shape.run(self.middle, self.stem(latents))
        for number, level in enumerate(self.levels):
            if number > 0:
                x = self.ups[number - 1](x)
                if skips is not None:
                    x = x + self.skips[number - 1](skips[-number])
            x = self.shape.run(level, x)
        images = F.pixel_shuffle(self.head(x), self.shape.patch_size).float()
        return torch.tanh(images) if self.shape.output == "tanh" else images


class VAE(nn.Module):
    """VAE between images (b, 3, R, R) in [-1, 1] and latents (b, latent_channels, R / f, R / f), f = `downsampling`.

    The buffers `latent_mean` and `latent_std` (latent_channels, 1, 1) are measured in training and saved with the
    weights. The diffusion model gets latents that `normalize` has scaled to mean 0 and std 1.

    Args:
        latent_channels: channels of the latents.
        channels: channels of the first level.
        multipliers: channels of each level as multiples of `channels`; each level after the first halves R.
        num_blocks: residual blocks per level: one number, or one for each level.
        attention: self-attention in the middle block, at the lowest resolution.
        attention_levels: levels, counted from 0 at the finest, with self-attention after each block.
        patch_size: factor of the pixel unshuffle before the first level, which saves compute at high resolution.
        downsample: "strided", "mean" or "unshuffle" (see `Downsample`).
        upsample: "nearest", "bilinear" or "shuffle" (see `Upsample`).
        output: "tanh" keeps images within [-1, 1]; "linear" does not, and images are clipped when saved.
        skip_connections: let the decoder use the encoder's features (see `decode`).
        gradient_checkpointing: recompute activations in the backward pass, for less memory and more time.
        decoder_channels: channels of the decoder's first level; `channels` if None. Half as many take a quarter of
            the FLOPs.
    """

    latent_mean: Tensor
    latent_std: Tensor
    has_variance = True
    """False for an autoencoder whose posterior has only a mean: it has no KL divergence."""

    def __init__(
        self,
        latent_channels: Positive = 4,
        channels: Positive = 64,
        multipliers: Annotated[Sequence[Positive], Len(1)] = (1, 2, 4),
        num_blocks: Positive | Sequence[Positive] = 2,
        attention: bool = True,
        attention_levels: Collection[int] = (),
        patch_size: Positive = 1,
        downsample: Downsampling = "strided",
        upsample: Upsampling = "nearest",
        output: Output = "tanh",
        skip_connections: bool = False,
        gradient_checkpointing: bool = False,
        decoder_channels: Positive | None = None,
    ) -> None:
        super().__init__()
        shape = Shape(
            latent_channels,
            channels,
            multipliers,
            num_blocks,
            attention,
            attention_levels,
            patch_size,
            downsample,
            upsample,
            output,
            skip_connections,
            gradient_checkpointing,
        )
        self.latent_channels, self.downsampling = latent_channels, shape.downsampling
        self.skip_connections = skip_connections
        light = replace(shape, channels=channels if decoder_channels is None else decoder_channels)
        self.encoder, self.decoder = Encoder(shape), Decoder(light, shape.widths[:-1])
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Encode images (b, 3, R, R) to the posterior over latents; R is a multiple of `downsampling`."""
        return self.encode_with_skips(images)[0]

    def encode_with_skips(self, images: Tensor) -> tuple[DiagonalGaussian, Skips]:
        """Encode images to the posterior and the encoder's features for `decode`."""
        self.check_size(images)
        moments, skips = self.encoder.with_skips(images)
        return DiagonalGaussian.from_moments(moments), skips

    def encode_with_features(self, images: Tensor) -> tuple[DiagonalGaussian, Skips]:
        """Encode images to the posterior and the encoder's features, for `EncoderFeatures`."""
        return self.encode_with_skips(images)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last convolution."""
        weight: Tensor = self.decoder.head[-1].weight  # type: ignore[assignment]
        return weight

    def check_size(self, images: Tensor) -> None:
        """Raise a ValueError if the size of images is not a multiple of `downsampling`."""
        height, width = images.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(f"images of {height}x{width} are not a multiple of the VAE's factor {self.downsampling}")

    @property
    def cache_key(self) -> str:
        """Hash of the weights in the name of a latent cache."""
        return weights_hash(self)

    def decode(self, latents: Tensor, skips: Skips | None = None) -> Tensor:
        """Decode latents (b, latent_channels, h, w) to images (b, 3, f h, f w) in [-1, 1].

        Generated latents have no skips. In reconstructions and edits of images, skips preserve detail that the latents
        lack. Scale them by a factor in [0, 1] to weaken them.

        Args:
            latents: generated latents or latents of images.
            skips: the encoder's features of the images.
        """
        return self.decoder(latents, skips)

    def forward(self, images: Tensor, skip_dropout: float = 1.0) -> tuple[Tensor, DiagonalGaussian, Tensor]:
        """Encode images, sample latents and decode them.

        Args:
            images: (b, 3, R, R) in [-1, 1].
            skip_dropout: probability that a sample is decoded without skips; 1 for a VAE without them.

        Returns:
            Reconstructions (b, 3, R, R), the posterior, and the sampled latents.
        """
        posterior, skips = self.encode_with_skips(images)
        latents = posterior.sample()
        if not self.skip_connections:
            return self.decode(latents), posterior, latents
        kept = (torch.rand(len(images), 1, 1, 1, device=images.device) >= skip_dropout).float()
        return self.decode(latents, [kept.to(skip.dtype) * skip for skip in skips]), posterior, latents

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile encoder and decoder in place at their first call, with the arguments of `torch.compile`."""
        self.encoder.with_skips = torch.compile(self.encoder.with_skips, *args, **kwargs)  # type: ignore[method-assign]
        self.decoder.compile(*args, **kwargs)

    def normalize(self, latents: Tensor) -> Tensor:
        """Normalize latents to mean 0 and std 1 per channel."""
        return (latents - self.latent_mean) / self.latent_std

    def denormalize(self, latents: Tensor) -> Tensor:
        """Invert `normalize`."""
        return latents * self.latent_std + self.latent_mean
