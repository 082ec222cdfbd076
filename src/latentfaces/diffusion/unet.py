"""U-Net for diffusion (Ho et al. 2020, appendix B; Dhariwal & Nichol 2021, section 3)."""

from collections.abc import Collection, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentfaces.bounds import Len, Positive, Probability
from latentfaces.nn import Downsample, ResBlock, SelfAttention2d, TimeEmbedding, Upsample, group_norm, zero_init


class Stage(nn.Module):
    """Residual block with time modulation, followed by attention if num_heads is above 0."""

    def __init__(
        self, in_channels: int, out_channels: int, embedding_width: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.block = ResBlock(in_channels, out_channels, embedding_width, dropout)
        self.attention = SelfAttention2d(out_channels, num_heads) if num_heads else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """U-Net: maps x_t (b, channels, h, w) and t (b,) to (b, channels, h, w).

    Height and width are multiples of 2^(levels - 1).

    Args:
        channels: channels of the latents.
        width: channels of the first level.
        multipliers: channels of each level as multiples of `width`; each level after the first halves h and w.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_levels: levels, counted from 0, with self-attention; the middle block always has it.
        head_width: channels of an attention head, or more if they do not divide those of a level.
        dropout: dropout probability in the residual blocks.
        label_channels: size of the condition: parameters of the augmentation and labels; 0 for none.
        flow_map: take the length of a step as a third input, see `FlowMapLoss`.
    """

    def __init__(
        self,
        channels: int,
        width: Positive = 128,
        multipliers: Annotated[Sequence[Positive], Len(1)] = (1, 2, 2),
        num_blocks: Positive = 2,
        attention_levels: Collection[int] = (1, 2),
        head_width: Positive = 64,
        dropout: Probability = 0.0,
        label_channels: int = 0,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        embedding_width, self.label_channels = 4 * width, label_channels
        self.embed_time = TimeEmbedding(embedding_width)
        self.embed_label = nn.Linear(label_channels, embedding_width, bias=False) if label_channels else None
        self.embed_step = TimeEmbedding(embedding_width, zero=True) if flow_map else None
        self.stem = nn.Conv2d(channels, width, 3, padding=1)

        def stage(in_channels: int, out_channels: int, attend: bool) -> Stage:
            heads = max(1, out_channels // head_width)
            while out_channels % heads:
                heads -= 1
            return Stage(in_channels, out_channels, embedding_width, heads if attend else 0, dropout)

        in_channels, skips = width, [width]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(Downsample(in_channels))
                skips.append(in_channels)
            for _ in range(num_blocks):
                self.down.append(stage(in_channels, width * multiplier, level in attention_levels))
                in_channels = width * multiplier
                skips.append(in_channels)

        self.middle = nn.ModuleList([stage(in_channels, in_channels, attend) for attend in (True, False)])

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(num_blocks + 1):
                self.up.append(stage(in_channels + skips.pop(), width * multiplier, level in attention_levels))
                in_channels = width * multiplier
            if level > 0:
                self.up.append(Upsample(in_channels))

        self.norm = group_norm(in_channels)
        self.out = zero_init(nn.Conv2d(in_channels, channels, 3, padding=1))  # initial prediction: 0, the mean of v

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None, step: Tensor | None = None) -> Tensor:
        embedding = self.embed_time(t)
        if self.embed_step is not None:
            embedding = embedding + self.embed_step(step)
        if condition is not None:
            assert self.embed_label is not None, "Got a condition, but the network has label_channels=0."
            embedding = embedding + self.embed_label(condition)
        x = self.stem(x_t)
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, Stage) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = layer(torch.cat([x, skips.pop()], dim=1), embedding) if isinstance(layer, Stage) else layer(x)
        return self.out(F.silu(self.norm(x)))
