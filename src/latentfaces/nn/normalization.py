"""Normalisation layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, fewer where a group would hold less than 4 channels."""
    groups = min(32, max(1, channels // 4))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


EPSILON = 1e-6
"""Added to mean squares, in every precision alike."""


class RMSNorm(nn.Module):
    """x / its root mean square over the last dimension, times a weight if asked (Zhang & Sennrich 2019, eq. 4).

    Args:
        channels: size of the last dimension.
        weighted: with a trained weight for each channel.
    """

    def __init__(self, channels: int, weighted: bool = False) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        if x.device.type != "cpu":
            # Autocast would hand on a copy in float32, and keep another; the kernel sums in float32 by itself.
            with torch.autocast(x.device.type, enabled=False):
                return F.rms_norm(x, (self.channels,), weight, EPSILON)
        # On CPUs PyTorch has no kernel for it: a chain of small operations, whose gradient is a longer one.
        normed: Tensor = DividedByRMS.apply(x)
        return normed if weight is None else normed * weight


class DividedByRMS(torch.autograd.Function):
    """The same in few passes through memory: with y = x / rms, dx = (dy - y mean(dy y)) / rms."""

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
    """Let a layer start by giving exactly 0; it, for chaining."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
