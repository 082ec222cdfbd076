"""Convolutional blocks on feature maps (b, channels, h, w)."""

import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.nn.normalization import group_norm, zero_init


class ResBlock(nn.Module):
    """Residual block: twice (group norm, SiLU, 3x3 convolution), after He et al. 2016 and Ho et al. 2020.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; a 1x1 convolution carries the input across where they differ.
        embedding_width: width of a vector per sample that scales and shifts the second norm (0: no vector).
        dropout: probability of dropping a value before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding_width, 2 * out_channels) if embedding_width else None
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        # The block starts as the identity, so that deep stacks start well.
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x (b, in_channels, h, w), embedding (b, embedding_width) -> (b, out_channels, h, w)."""
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.scale_shift is not None:
            assert embedding is not None
            scale, shift = self.scale_shift(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(hidden)))


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width by nearest neighbours, then a 3x3 convolution (no checkerboard: Odena et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
