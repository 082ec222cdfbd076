"""Embeddings of the diffusion time and of token positions."""

import torch
from torch import Tensor, nn

from latentfaces.nn.normalization import zero_init


class TimeEmbedding(nn.Module):
    """Time embedding: maps t in [0, 1], (b,), to (b, width) by sinusoidal features and an MLP.

    The features are those of Vaswani et al. 2017, section 3.5, of t * 1000 (Ho et al. 2020). With `zero`, the initial
    embedding is 0.
    """

    def __init__(self, width: int, num_frequencies: int = 128, zero: bool = False) -> None:
        super().__init__()
        exponents = torch.arange(num_frequencies) / num_frequencies
        self.frequencies: Tensor
        self.register_buffer("frequencies", 1000 * 10_000.0**-exponents, persistent=False)
        last = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(2 * num_frequencies, width), nn.SiLU(), zero_init(last) if zero else last)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies
        return self.layers(torch.cat([angles.cos(), angles.sin()], dim=-1))


def grid_angles(
    height: int, width: int, channels: int, base: float, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """Return position / base^(i / n), i < n = channels / 4, of rows (height, n) and columns (width, n)."""
    if channels % 4:
        raise ValueError(f"2-D position embeddings need a multiple of 4 channels, not {channels}")
    frequencies = base ** -(torch.arange(channels // 4, device=device) / (channels // 4))
    rows, columns = (torch.arange(size, device=device)[:, None] * frequencies for size in (height, width))
    return rows, columns


def position_table_2d(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Return fixed 2-D sin-cos position embeddings of a (height, width) grid: (height * width, channels).

    The first half of the channels encodes the row, the second half the column. Each half holds sines, then cosines
    (Vaswani et al. 2017, section 3.5; in two dimensions as in Peebles & Xie 2023).

    Args:
        height: rows of the grid.
        width: columns of the grid.
        channels: channels of a token, a multiple of 4.
        device: device of the result.
    """
    rows, columns = grid_angles(height, width, channels, 10_000.0, device)
    row_features = torch.cat([rows.sin(), rows.cos()], dim=-1)[:, None].expand(-1, width, -1)
    column_features = torch.cat([columns.sin(), columns.cos()], dim=-1)[None].expand(height, -1, -1)
    return torch.cat([row_features, column_features], dim=-1).flatten(0, 1)


def rotation_2d(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Return cos and sin of the rotary angles of a (height, width) grid: (2, height * width, channels).

    Half of the channel pairs encode the row, half the column (RoPE: Su et al. 2021, eq. 15; axial 2-D RoPE: Heo et al.
    2024). `channels` is a multiple of 4.
    """
    # Grids are tens of tokens wide, not thousands, so a base of 100 suffices.
    rows, columns = grid_angles(height, width, channels, 100.0, device)
    angles = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
    angles = torch.cat([angles, angles], dim=-1).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + channels / 2) of x (..., n, channels) by `rotation` (2, n, channels)."""
    first, second = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]
