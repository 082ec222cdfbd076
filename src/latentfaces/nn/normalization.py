"""Normalisation layers."""

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, fewer where a group would hold less than 4 channels."""
    groups = min(32, max(1, channels // 4))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


def zero_init(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """Let a layer start by giving exactly 0; it, for chaining."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
