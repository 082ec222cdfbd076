"""The diffusion transformer (Peebles & Xie 2023), with the changes that later work agrees on."""

import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.nn import SelfAttention, TimeEmbedding, rotation_2d, zero_init


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020, eq. 6); its width of 8/3 keeps the parameters of a plain one of 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 32 * round(width * 8 / 3 / 32)  # matrix units like multiples of 32
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        gate, value = self.gate_and_value(tokens).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class DiTBlock(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the time (adaLN-Zero: Peebles & Xie, 3.2)."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, num_heads, qk_norm)
        self.feed_forward_norm = nn.RMSNorm(width, elementwise_affine=False)
        self.feed_forward = SwiGLU(width)
        self.dropout = nn.Dropout(dropout)
        self.modulation = zero_init(nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, embedding: Tensor, rotation: Tensor) -> Tensor:
        """Tokens (b, n, width), embedding of the time (b, width), rotation (2, n, head width) -> tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        normed = self.attention_norm(tokens) * (1 + scale1) + shift1
        tokens = tokens + gate1 * self.dropout(self.attention(normed, rotation))
        normed = self.feed_forward_norm(tokens) * (1 + scale2) + shift2
        return tokens + gate2 * self.dropout(self.feed_forward(normed))


class DiT(nn.Module):
    """(x_t (b, channels, h, w), t (b,)) -> (b, channels, h, w); h and w are multiples of `patch_size`.

    Against the paper: RMSNorm for LayerNorm, SwiGLU for the GELU layer, rotary positions for a table, optional QK-norm.

    Args:
        channels: channels of a latent.
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads; `width / num_heads` is a multiple of 4.
        patch_size: latents per side that make one token.
        qk_norm: normalise queries and keys.
        dropout: of both branches of a block.
    """

    def __init__(
        self,
        channels: int,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        patch_size: int = 2,
        qk_norm: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.head_width = width // num_heads
        self.embed_patch = nn.Linear(channels * patch_size**2, width)
        self.embed_time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads, qk_norm, dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.modulation = zero_init(nn.Linear(width, 2 * width))
        self.out = zero_init(nn.Linear(width, channels * patch_size**2))  # the first prediction is 0, the mean of v

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        height, width = (side // self.patch_size for side in x_t.shape[-2:])
        tokens = self.embed_patch(F.pixel_unshuffle(x_t, self.patch_size).flatten(2).transpose(1, 2))
        embedding = F.silu(self.embed_time(t))
        rotation = rotation_2d(height, width, self.head_width, x_t.device).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, embedding, rotation)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        patches = self.out(self.norm(tokens) * (1 + scale) + shift)
        return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (height, width)), self.patch_size)
