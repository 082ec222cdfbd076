"""Normalisation layers."""

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 32 groups, fewer where a group would hold less than 4 channels."""
    groups = min(32, channels // 4)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)
