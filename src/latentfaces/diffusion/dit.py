"""Diffusion transformer (DiT: Peebles & Xie 2023) with the components of later work."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.bounds import Positive, Probability
from latentfaces.nn import RMSNorm, SelfAttention, TimeEmbedding, position_table_2d, rotation_2d, zero_init


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020, eq. 6).

    Its expansion of 8/3 has as many parameters as an ungated layer with an expansion of 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 32 * round(width * 8 / 3 / 32)  # matrix units are fastest at multiples of 32
        # Two layers avoid concatenating the gradient of one layer of twice the width in each step.
        self.gate, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(F.silu(self.gate(tokens)) * self.value(tokens))


class DiTBlock(nn.Module):
    """Attention and feed-forward block with adaLN-Zero time modulation (Peebles & Xie 2023, section 3.2)."""

    def __init__(self, width: int, num_heads: int, qk_norm: bool, dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = SelfAttention(width, num_heads, qk_norm)
        self.feed_forward_norm = RMSNorm(width)
        self.feed_forward = SwiGLU(width)
        self.dropout = nn.Dropout(dropout)
        self.modulation = zero_init(nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, embedding: Tensor, rotation: Tensor) -> Tensor:
        """Map tokens (b, n, width), time embedding (b, width) and rotation (2, n, head width) to tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(embedding)[:, None].chunk(6, dim=-1)
        normed = torch.addcmul(shift1, self.attention_norm(tokens), 1 + scale1)
        tokens = tokens + gate1 * self.dropout(self.attention(normed, rotation))
        normed = torch.addcmul(shift2, self.feed_forward_norm(tokens), 1 + scale2)
        return tokens + gate2 * self.dropout(self.feed_forward(normed))


class DiTHead(nn.Module):
    """Output head from tokens to patches. It is initialized to return 0, the mean of v."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.modulation = zero_init(nn.Linear(width, 2 * width))
        self.out = zero_init(nn.Linear(width, out_channels))

    def forward(self, tokens: Tensor, embedding: Tensor) -> Tensor:
        """Map tokens (b, n, width) and time embedding (b, width) to patches (b, n, out_channels)."""
        shift, scale = self.modulation(embedding)[:, None].chunk(2, dim=-1)
        return self.out(torch.addcmul(shift, self.norm(tokens), 1 + scale))


class DiT(nn.Module):
    """Diffusion transformer: maps x_t (b, channels, h, w) and t (b,) to (b, channels, h, w).

    Height and width are multiples of `patch_size`. Differences from the paper: RMSNorm instead of LayerNorm, SwiGLU
    instead of GELU, rotary position embeddings in addition to the table, and optional QK-norm.

    Args:
        channels: channels of the latents.
        width: channels of a token.
        depth: number of blocks.
        num_heads: number of attention heads; `width` is a multiple of 4 * num_heads.
        patch_size: height and width of the patch of one token.
        qk_norm: normalize queries and keys.
        dropout: dropout probability in both branches of a block.
        auxiliary_depth: number of blocks before the auxiliary head, which guidance="internal" needs; 0 for no head.
        label_channels: size of the condition: parameters of the augmentation and labels; 0 for none.
        position_table: add a fixed 2-D sin-cos table to the patch embeddings. Rotary attention sees only relative
            positions, so without the table a token cannot know where it is while its content is noise. False by
            default, because configs of older runs lack the key; the presets set it.
        flow_map: take the length of a step as a third input, see `FlowMapLoss`.
    """

    def __init__(
        self,
        channels: int,
        width: Positive = 384,
        depth: Positive = 12,
        num_heads: Positive = 6,
        patch_size: Positive = 2,
        qk_norm: bool = True,
        dropout: Probability = 0.0,
        auxiliary_depth: int = 0,
        label_channels: int = 0,
        position_table: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        if width % (4 * num_heads):  # the rotation pairs channels, and half of the pairs are for rows
            raise ValueError(f"width={width} is not a multiple of 4 * num_heads, with num_heads={num_heads}")
        if not 0 <= auxiliary_depth < depth:
            raise ValueError(f"auxiliary_depth={auxiliary_depth} must be at least 0 and below depth={depth}")
        self.patch_size, self.auxiliary_depth, self.label_channels = patch_size, auxiliary_depth, label_channels
        self.width, self.head_width = width, width // num_heads
        self.position_table = position_table
        self.embed_patch = nn.Linear(channels * patch_size**2, width)
        self.embed_time = TimeEmbedding(width)
        self.embed_label = nn.Linear(label_channels, width, bias=False) if label_channels else None
        self.embed_step = TimeEmbedding(width, zero=True) if flow_map else None
        self.blocks = nn.ModuleList(DiTBlock(width, num_heads, qk_norm, dropout) for _ in range(depth))
        self.head = DiTHead(width, channels * patch_size**2)
        self.auxiliary_head = DiTHead(width, channels * patch_size**2) if auxiliary_depth else None

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, step: Tensor | None = None) -> Tensor:
        return self.predictions(x_t, t, condition, step, auxiliary=False)[0]

    def heads(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the prediction and that of the auxiliary head (Internal Guidance: arXiv 2512.24176)."""
        return self.predictions(x_t, t, condition, None, auxiliary=True)

    def predictions(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None, step: Tensor | None, auxiliary: bool
    ) -> list[Tensor]:
        """Return the prediction, followed by that of the auxiliary head if asked for."""
        height, width = (side // self.patch_size for side in x_t.shape[-2:])
        tokens = self.embed_patch(F.pixel_unshuffle(x_t, self.patch_size).flatten(2).transpose(1, 2))
        if self.position_table:
            tokens = tokens + position_table_2d(height, width, self.width, x_t.device).to(tokens.dtype)
        embedding = self.embed_time(t)
        if self.embed_step is not None:
            embedding = embedding + self.embed_step(step)
        if condition is not None:
            assert self.embed_label is not None, "Got a condition, but the network has label_channels=0."
            embedding = embedding + self.embed_label(condition)
        embedding = F.silu(embedding)
        rotation = rotation_2d(height, width, self.head_width, x_t.device).to(tokens.dtype)
        auxiliary_patches: list[Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, embedding, rotation)
            if auxiliary and self.auxiliary_head is not None and number == self.auxiliary_depth:
                auxiliary_patches.append(self.auxiliary_head(tokens, embedding))
        patches = [self.head(tokens, embedding), *auxiliary_patches]
        unflat = [p.transpose(1, 2).unflatten(2, (height, width)) for p in patches]
        return [F.pixel_shuffle(p, self.patch_size) for p in unflat]
