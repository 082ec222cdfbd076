"""Normalization layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group norm with 32 groups, or fewer where a group would have less than 4 channels."""
    groups = min(32, max(1, channels // 4))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


EPSILON = 1e-6
"""Constant added to the mean square, equal in every precision."""


class RMSNorm(nn.Module):
    """RMS normalization over the last dimension (Zhang & Sennrich 2019, eq. 4).

    Args:
        channels: size of the last dimension.
        weighted: multiply by a learned weight per channel.
    """

    def __init__(self, channels: int, weighted: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        if x.device.type != "cpu":
            # Autocast would store copies in float32. The kernel accumulates in float32 anyway.
            with torch.autocast(x.device.type, enabled=False):
                return F.rms_norm(x, (self.channels,), weight, EPSILON)
        # PyTorch has no CPU kernel: F.rms_norm would run many small operations forward and backward.
        normed: Tensor = DividedByRMS.apply(x)
        return normed if weight is None else normed * weight


class DividedByRMS(torch.autograd.Function):
    """RMS normalization y = x / rms with few memory passes; dx = (dy - y mean(dy y)) / rms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact)
        scale = (norm.square() / x.shape[-1] + EPSILON).rsqrt().to(x.dtype)
        normed = x * scale
        ctx.save_for_backward(normed, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        normed, scale = ctx.saved_tensors
        along = (gradient * normed).mean(-1, keepdim=True)
        return torch.addcmul(gradient, normed, along, value=-1).mul_(scale)


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Set weight and bias of a layer to 0. Return the layer."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
