"""Augmentation of latents that does not leak into samples."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from latentfaces.bounds import Interval


class Augmentation:
    """Non-leaky augmentation of latents (Karras et al. 2022, appendix F.2).

    The network receives the parameters of the augmentation in its condition. Samplers use 0, which means none.
    Vertical flip, scale, rotation, stretch and shift are applied independently. Horizontal flips are in the latent
    cache already. Values beyond the edge are reflected.

    The parameters of a stretch have twice the angle of its axis. With the angle itself, as in the paper's code, a
    stretch along an axis and a compression along its opposite would have the same parameters.

    Args:
        probability: probability of each transformation, in (0, 1]; 0.12 to 0.15 in the paper.
    """

    label_channels = 8

    def __init__(self, probability: Annotated[float, Interval(gt=0, le=1)]) -> None:
        self.probability = probability

    def __call__(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented latents (b, c, h, w) and its parameters (b, 8), which are 0 where nothing was applied."""
        b = len(x0)
        applied = (torch.rand(5, b, device=x0.device) < self.probability).float()
        normal = torch.randn(4, b, device=x0.device)
        angles = math.pi * (2 * torch.rand(2, b, device=x0.device) - 1)
        flip, scale = applied[0], applied[1] * 0.2 * normal[0]
        turn, stretch, axis = applied[2] * angles[0], applied[3] * 0.2 * normal[1], angles[1]
        shift = applied[4] * 0.125 * normal[2:]

        with torch.autocast(x0.device.type, enabled=False):  # the parameters must match the transformation exactly
            matrix = scaling(1 / scale.exp2(), (1 - 2 * flip) / scale.exp2()) @ rotation(turn)
            matrix = matrix @ rotation(axis) @ scaling(1 / stretch.exp2(), stretch.exp2()) @ rotation(-axis)
            affine = torch.cat([matrix, 2 * shift.T[..., None]], dim=2)
            grid = F.affine_grid(affine, list(x0.shape), align_corners=False)
            moved = F.grid_sample(x0, grid.to(x0.dtype), padding_mode="reflection", align_corners=False)
        parameters = torch.stack(
            [flip, scale, turn.cos() - 1, turn.sin(), stretch * (2 * axis).cos(), stretch * (2 * axis).sin(), *shift],
            dim=1,
        )
        untouched = (applied.sum(0) == 0)[:, None, None, None]
        return torch.where(untouched, x0, moved), parameters


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """Return matrices (b, 2, 2) that scale by x (b,) and y (b,)."""
    return torch.diag_embed(torch.stack([x, y], dim=1))


def rotation(angle: Tensor) -> Tensor:
    """Return matrices (b, 2, 2) that rotate by angle (b,), in radians."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
