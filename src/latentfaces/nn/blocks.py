"""Convolutional blocks on feature maps (b, channels, h, w)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.nn.device import phased_upsampling
from latentfaces.nn.normalization import group_norm, zero_init

Downsampling = Literal["strided", "mean", "unshuffle"]
Upsampling = Literal["nearest", "bilinear", "shuffle"]


class ResBlock(nn.Module):
    """Residual block of two (group norm, SiLU, 3x3 convolution) layers (He et al. 2016; Ho et al. 2020).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; if they differ, the shortcut is a 1x1 convolution.
        embedding_width: width of the embedding that scales and shifts the second norm; 0 for none.
        dropout: dropout probability before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_width: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(embedding_width, 2 * out_channels) if embedding_width else None
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        # The initial block is the identity, which stabilizes deep networks.
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Map x (b, in_channels, h, w) and embedding (b, embedding_width) to (b, out_channels, h, w)."""
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.scale_shift is not None:
            assert embedding is not None
            scale, shift = self.scale_shift(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(hidden)))


class Downsample(nn.Module):
    """Halve height and width.

    Args:
        channels: channels before and after.
        how: "strided": 3x3 convolution with stride 2; "mean": 2x2 average pooling, then a 3x3 convolution;
            "unshuffle": pixel unshuffle by 2, then a 1x1 convolution.
    """

    def __init__(self, channels: int, how: Downsampling = "strided") -> None:
        super().__init__()
        self.how = how
        if how == "unshuffle":
            self.conv = nn.Conv2d(4 * channels, channels, 1)
        else:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2 if how == "strided" else 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "mean":
            x = F.avg_pool2d(x, 2)
        elif self.how == "unshuffle":
            x = F.pixel_unshuffle(x, 2)
        return self.conv(x)


def phase_kernels(weight: Tensor) -> Tensor:
    """Convert 3x3 kernels for the upsampled map to 2x2 kernels for the original: (o, i, 3, 3) -> (4 o, i, 2, 2).

    Two of three neighbors in the upsampled map are copies of one pixel, so their weights add up. Which two depends on
    the position of the output pixel in its pair, for rows and for columns.
    """
    first, middle, last = weight.unbind(2)
    rows = torch.stack([first, middle + last, first + middle, last]).unflatten(0, (2, 2))  # pair, tap, o, i, column
    first, middle, last = rows.unbind(-1)
    both = torch.stack([first, middle + last, first + middle, last]).unflatten(0, (2, 2))
    return both.permute(2, 0, 4, 5, 3, 1).flatten(0, 2)


class Upsample(nn.Module):
    """Double height and width.

    Args:
        channels: channels before and after.
        how: "nearest" or "bilinear": interpolation, then a 3x3 convolution (Odena et al. 2016); "shuffle": a 3x3
            convolution to four times the channels, then pixel shuffle by 2 (Shi et al. 2016).
    """

    def __init__(self, channels: int, how: Upsampling = "nearest") -> None:
        super().__init__()
        self.how = how
        self.phased: bool | None = None
        self.conv = nn.Conv2d(channels, 4 * channels if how == "shuffle" else channels, 3, padding=1)
        if how == "shuffle":
            # Equal initial weights for the four output pixels avoid checkerboard artifacts.
            with torch.no_grad():
                self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, dim=0))
                assert self.conv.bias is not None
                self.conv.bias.copy_(self.conv.bias[::4].repeat_interleave(4, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "shuffle":
            return F.pixel_shuffle(self.conv(x), 2)
        if self.how == "nearest" and (phased_upsampling(x) if self.phased is None else self.phased):
            return self.in_phases(x)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode=self.how))

    def in_phases(self, x: Tensor) -> Tensor:
        """Compute "nearest" without the upsampled input, in 2.25 times fewer FLOPs."""
        b, c, h, w = x.shape
        assert self.conv.bias is not None
        kernels, bias = phase_kernels(self.conv.weight), self.conv.bias.repeat(4)
        # Corner i is between pixels i - 1 and i. The first output pixel of pair i uses corner i, the second i + 1.
        corners = F.conv2d(x, kernels, bias, padding=1).unflatten(1, (2, 2, c))  # (b, 2, 2, c, h + 1, w + 1)
        rows = [torch.stack([corners[:, i, j, :, i : i + h, j : j + w] for j in (0, 1)], dim=-1) for i in (0, 1)]
        return torch.stack(rows, dim=3).view(b, c, 2 * h, 2 * w)


def choose_upsampling(network: nn.Module, phased: bool | None) -> bool:
    """Set phased computation of "nearest" upsampling in `network`; None: where it is faster. Return if there is any."""
    layers = [module for module in network.modules() if isinstance(module, Upsample) and module.how == "nearest"]
    for layer in layers:
        layer.phased = phased
    return bool(layers)
