"""More data than there are, without their traces in what is generated."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Augmentation:
    """Non-leaky augmentation of latents (Karras et al. 2022, appendix F.2): the network is told what was done.

    Asked with the label 0, as samplers do, it gives latents as they were. Upside down, scale, rotation, stretch and
    shift are each done with their own probability; mirror images the latent cache has already. What comes in from
    beyond the edge is a reflection.

    Args:
        probability: of each, in (0, 1]; the paper takes 0.12 to 0.15.
    """

    label_channels = 8

    def __init__(self, probability: float) -> None:
        if not 0 < probability <= 1:
            raise ValueError(f"probability={probability} must be above 0 and at most 1")
        self.probability = probability

    def __call__(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents (b, c, h, w) -> changed ones, and the label (b, 8), 0 for what was not done."""
        b = len(x0)
        done = (torch.rand(5, b, device=x0.device) < self.probability).float()
        normal = torch.randn(4, b, device=x0.device)
        angles = math.pi * (2 * torch.rand(2, b, device=x0.device) - 1)
        flip, scale = done[0], done[1] * 0.2 * normal[0]
        turn, stretch, axis = done[2] * angles[0], done[3] * 0.2 * normal[1], angles[1]
        shift = done[4] * 0.125 * normal[2:]

        with torch.autocast(x0.device.type, enabled=False):  # the label says exactly what is done
            matrix = scaling(1 / scale.exp2(), (1 - 2 * flip) / scale.exp2()) @ rotation(turn)
            matrix = matrix @ rotation(axis) @ scaling(1 / stretch.exp2(), stretch.exp2()) @ rotation(-axis)
            affine = torch.cat([matrix, 2 * shift.T[..., None]], dim=2)
            grid = F.affine_grid(affine, list(x0.shape), align_corners=False)
            moved = F.grid_sample(x0, grid.to(x0.dtype), padding_mode="reflection", align_corners=False)
        label = torch.stack(
            [flip, scale, turn.cos() - 1, turn.sin(), stretch * axis.cos(), stretch * axis.sin(), *shift], dim=1
        )
        untouched = (done.sum(0) == 0)[:, None, None, None]
        return torch.where(untouched, x0, moved), label


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """Matrices (b, 2, 2) that scale by x (b,) and y (b,)."""
    return torch.diag_embed(torch.stack([x, y], dim=1))


def rotation(angle: Tensor) -> Tensor:
    """Matrices (b, 2, 2) that turn by angle (b,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
