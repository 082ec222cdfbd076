"""Self-attention over tokens and over feature maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.nn.device import Kernel, attention_kernel
from latentfaces.nn.embeddings import rotate
from latentfaces.nn.normalization import RMSNorm, group_norm, zero_init

SCORES_AT_ONCE = 2**26
"""Attention scores that the plain kernel computes at once. Without a limit, 1,024 px at f4 would take 8 GB."""


def attention(query: Tensor, key: Tensor, value: Tensor, kernel: Kernel | None = None) -> Tensor:
    """Compute softmax attention (Vaswani et al. 2017, eq. 1).

    Args:
        query, key, value: (b, heads, tokens, channels).
        kernel: implementation; the fastest one for the device and dtype if None.
    """
    if (kernel or attention_kernel(query.device, query.dtype)) == "plain":
        scaled, keys = query * query.shape[-1] ** -0.5, key.transpose(-1, -2)
        at_once = max(1, SCORES_AT_ONCE // (query.shape[:-2].numel() * key.shape[-2]))
        parts = [(part @ keys).softmax(-1) @ value for part in scaled.split(at_once, dim=-2)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
    # If channels are not contiguous, PyTorch silently falls back to a kernel that stores all scores.
    query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value)


def choose_kernel(network: nn.Module, kernel: Kernel | None) -> bool:
    """Set the attention kernel of all layers in `network`. Return whether there are any."""
    layers = [module for module in network.modules() if isinstance(module, SelfAttention | SelfAttention2d)]
    for layer in layers:
        layer.kernel = kernel
    return bool(layers)


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (b, n, width) with rotary embeddings and optional QK-norm.

    Args:
        width: channels of a token; a multiple of `num_heads`.
        num_heads: number of heads.
        qk_norm: RMS-normalize queries and keys, which bounds the logits in bfloat16 (Henry et al. 2020).
    """

    def __init__(self, width: int, num_heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width={width} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.kernel: Kernel | None = None
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        head_width = width // num_heads
        self.query_norm = RMSNorm(head_width, weighted=True) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(head_width, weighted=True) if qk_norm else nn.Identity()

    def forward(self, tokens: Tensor, rotation: Tensor) -> Tensor:
        """Map tokens (b, n, width) and rotation (2, n, width / num_heads) to tokens (b, n, width)."""
        b, n, _ = tokens.shape
        query, key, value = self.qkv(tokens).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key = rotate(self.query_norm(query), rotation), rotate(self.key_norm(key), rotation)
        mixed = attention(query, key, value, self.kernel)
        return self.out(mixed.transpose(1, 2).reshape(b, n, -1))


class SelfAttention2d(nn.Module):
    """Residual self-attention over the pixels of a feature map (b, channels, h, w) (Ho et al. 2020)."""

    def __init__(self, channels: int, num_heads: int = 1) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels={channels} is not a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.kernel: Kernel | None = None
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))  # the block starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).view(b, 3, self.num_heads, c // self.num_heads, h * w)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        mixed = attention(query, key, value, self.kernel).transpose(-1, -2).reshape(b, c, h, w)
        return x + self.out(mixed)
