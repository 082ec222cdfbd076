"""TAEF2, the tiny autoencoder of FLUX.2's latents, rebuilt from its published weights: R -> R/8, 32 channels.

Its weights are two state dicts, taef2_encoder.pth and taef2_decoder.pth, of the taesd project (MIT licence).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

WIDTH, LATENT_CHANNELS, GROUPS = 64, 32, 4


class Clamp(nn.Module):
    """Latents gently kept within -3 and 3."""

    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


class Block(nn.Module):
    """Residual block of three convolutions. `pool` adds a branch of wider 1 x 1 convolutions with a group norm."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        wide = 4 * WIDTH
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(GROUPS, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )
            if pool
            else None
        )
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


def conv(inner: int = WIDTH, outer: int = WIDTH, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    """3 x 3."""
    return nn.Conv2d(inner, outer, 3, stride, 1, bias=bias)


def encoder() -> nn.Sequential:
    """Images (b, 3, R, R) in [0, 1] -> latents."""
    layers: list[nn.Module] = [conv(3), Block()]
    for last in (False, False, True):
        layers += [conv(stride=2, bias=False), *(Block(pool=last) for _ in range(3))]
    return nn.Sequential(*layers, conv(outer=LATENT_CHANNELS))


def decoder() -> nn.Sequential:
    """Latents -> images (b, 3, R, R), about [0, 1]."""
    layers: list[nn.Module] = [Clamp(), conv(LATENT_CHANNELS), nn.ReLU()]
    for first in (True, False, False):
        layers += [*(Block(pool=first) for _ in range(3)), nn.Upsample(scale_factor=2), conv(bias=False)]
    return nn.Sequential(*layers, Block(), conv(outer=3))


class TAEF2(nn.Module):
    """Both halves.

    Args:
        folder: where the two files are.

    Raises:
        FileNotFoundError: one of them is missing.
        RuntimeError: they are of another network.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder(), decoder()
        for name, half in (("encoder", self.encoder), ("decoder", self.decoder)):
            half.load_state_dict(torch.load(folder / f"taef2_{name}.pth", map_location="cpu", weights_only=True))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 3, R, R) in [-1, 1] -> reconstructions, likewise."""
        return (2 * self.decoder(self.encoder((images + 1) / 2)) - 1).clamp(-1, 1)
