"""The variational autoencoder: images <-> latents (Kingma & Welling 2014; the shape of Rombach et al. 2022)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.autoencoder.posterior import DiagonalGaussian
from latentfaces.nn import Downsample, ResBlock, SelfAttention2d, Upsample, group_norm


def middle(channels: int, attention: bool) -> nn.Sequential:
    """The blocks at the lowest resolution: residual, attention (if wanted), residual."""
    between = [SelfAttention2d(channels)] if attention else []
    return nn.Sequential(ResBlock(channels, channels), *between, ResBlock(channels, channels))


def levels(widths: Sequence[int], num_blocks: int, resample: type[Downsample] | type[Upsample]) -> nn.Sequential:
    """`num_blocks` residual blocks of each width, resampling in between."""
    layers: list[nn.Module] = []
    for level, out in enumerate(widths):
        before = widths[max(level - 1, 0)]
        if level > 0:
            layers.append(resample(before))
        layers += [ResBlock(before if block == 0 else out, out) for block in range(num_blocks)]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Images (b, 3, R, R) in [-1, 1] -> moments (b, 2 * latent_channels, R / f, R / f).

    Args:
        latent_channels: channels of a latent.
        channels: channels of the first level.
        multipliers: channels of each level as multiples of `channels`; each level after the first halves R.
        num_blocks: residual blocks per level.
        attention: self-attention in the middle.
        patch_size: pixels per side folded into channels before the first level: cheap where pixels are many.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention: bool,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        widths = [channels * m for m in multipliers]
        self.stem = nn.Conv2d(3 * patch_size**2, widths[0], 3, padding=1)
        self.levels = levels(widths, num_blocks, Downsample)
        self.middle = middle(widths[-1], attention)
        self.head = nn.Sequential(
            group_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 2 * latent_channels, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(images, self.patch_size)
        return self.head(self.middle(self.levels(self.stem(patches))))


class Decoder(nn.Module):
    """Latents (b, latent_channels, R / f, R / f) -> images (b, 3, R, R) in [-1, 1] (Tanh); arguments as `Encoder`."""

    def __init__(
        self,
        latent_channels: int,
        channels: int,
        multipliers: Sequence[int],
        num_blocks: int,
        attention: bool,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        widths = [channels * m for m in reversed(multipliers)]
        self.stem = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.middle = middle(widths[0], attention)
        self.levels = levels(widths, num_blocks, Upsample)
        self.head = nn.Sequential(
            group_norm(widths[-1]), nn.SiLU(), nn.Conv2d(widths[-1], 3 * patch_size**2, 3, padding=1)
        )

    def forward(self, latents: Tensor) -> Tensor:
        patches = self.head(self.levels(self.middle(self.stem(latents))))
        return torch.tanh(F.pixel_shuffle(patches, self.patch_size).float())


class VAE(nn.Module):
    """Images (b, 3, R, R) in [-1, 1] <-> latents (b, latent_channels, R / f, R / f), f = `downsampling`.

    `latent_mean` and `latent_std` (latent_channels, 1, 1) are measured in training and travel with the weights, so
    that the diffusion model always sees latents of mean 0 and standard deviation 1. For the arguments see `Encoder`.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(
        self,
        latent_channels: int = 4,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2, 4),
        num_blocks: int = 2,
        attention: bool = True,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.downsampling = patch_size * 2 ** (len(multipliers) - 1)
        shape = (latent_channels, channels, multipliers, num_blocks, attention, patch_size)
        self.encoder = Encoder(*shape)
        self.decoder = Decoder(*shape)
        self.register_buffer("latent_mean", torch.zeros(latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(latent_channels, 1, 1))

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Images (b, 3, R, R) -> the posterior over latents; R must be a multiple of `downsampling`."""
        height, width = images.shape[-2:]
        if height % self.downsampling or width % self.downsampling:
            raise ValueError(f"images of {height}x{width} are not a multiple of the VAE's factor {self.downsampling}")
        return DiagonalGaussian.from_moments(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (b, latent_channels, h, w) -> images (b, 3, f h, f w) in [-1, 1]."""
        return self.decoder(latents)

    def forward(self, images: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """Encode, draw, decode: reconstructions (b, 3, R, R) and the posterior."""
        posterior = self.encode(images)
        return self.decode(posterior.sample()), posterior

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents as the decoder knows them -> mean 0, standard deviation 1 per channel."""
        return (latents - self.latent_mean) / self.latent_std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents * self.latent_std + self.latent_mean
