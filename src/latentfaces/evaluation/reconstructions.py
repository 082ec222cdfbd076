"""Reconstructions of held-out images by a pretrained VAE."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentfaces.data.images import to_float
from latentfaces.data.pack import Pack
from latentfaces.errors import UserError
from latentfaces.evaluation.grids import save_grid
from latentfaces.evaluation.metrics import calculate_metrics
from latentfaces.marks import EDITED

NUM_SHOWN, NUM_MEASURED = 8, 16
"""Images in the strip, and in the metrics."""


def show_reconstructions(reconstruct: Callable[[Tensor], Tensor], pack: Pack, name: str, path: Path) -> None:
    """Print PSNR and SSIM of a VAE on held-out images, and write a strip of images above their reconstructions.

    Args:
        reconstruct: encodes and decodes images (n, 3, R, R) in [-1, 1].
        pack: the images.
        name: the VAE, for messages.
        path: file of the strip.

    Raises:
        UserError: the reconstructions are not finite.
    """
    rows = np.linspace(0, len(pack.val_indices) - 1, min(NUM_MEASURED, len(pack.val_indices))).round().astype(int)
    images = to_float(torch.from_numpy(pack.images[pack.val_indices[rows]]))
    reconstructions = reconstruct(images).float().cpu().clamp(-1, 1)
    if not reconstructions.isfinite().all():
        raise UserError(f"{name} reconstructs images of this data as NaN or Inf. Choose another VAE.")
    shown = slice(0, NUM_SHOWN)
    save_grid(torch.cat([images[shown], reconstructions[shown]]), path, len(images[shown]), source=EDITED)
    values = calculate_metrics(images, reconstructions)
    print(f"{name} reconstructs held-out images with {values['psnr']:.1f} dB and SSIM {values['ssim']:.3f}: {path}")
