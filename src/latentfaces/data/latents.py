"""Every picture encoded once: stage 2 then never runs the encoder again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from latentfaces.data.ffhq import to_float
from latentfaces.data.pack import Pack

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (b, 3, R, R) float in [-1, 1] -> mean and standard deviation of the posterior, each (b, c, h, w)."""


def latents_path(pack: Pack, key: str) -> Path:
    """Where the latents of `pack` under the encoder `key` lie."""
    return pack.folder / f"latents-{key}.npy"


def open_latents(pack: Pack, key: str) -> NDArray[np.float16]:
    """(N, 2, 2, c, h, w) float16, mapped from disk: picture, as it is or mirrored, mean or standard deviation."""
    return np.load(latents_path(pack, key), mmap_mode="r")


@torch.no_grad()
def write_latents(pack: Pack, key: str, encode: Encode, device: torch.device, batch_size: int = 64) -> None:
    """Encode all of `pack`, each picture as it is and mirrored, unless that is done already.

    Args:
        pack: the pictures.
        key: names the encoder's weights (their hash), so that other weights make another file.
        encode: the encoder.
        device: where it computes.
        batch_size: pictures at once.
    """
    path = latents_path(pack, key)
    if path.exists():
        return
    partial = path.with_suffix(".partial")
    moments: np.memmap | None = None
    for first in track(range(0, len(pack.images), batch_size), f"Encoding {pack.folder.name}"):
        images = to_float(torch.from_numpy(pack.images[first : first + batch_size].copy()).to(device))
        for mirrored, view in enumerate((images, images.flip(-1))):
            batch = torch.stack(encode(view), dim=1)
            if moments is None:
                shape = (len(pack.images), 2, *batch.shape[1:])
                moments = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
            moments[first : first + len(view), mirrored] = batch.float().cpu().numpy()
    assert moments is not None
    moments.flush()
    partial.replace(path)
