"""Latent cache: each image is encoded once, and stage 2 trains without the encoder."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from latentfaces.data.arrays import ResumableArray, open_array
from latentfaces.data.images import to_float
from latentfaces.data.pack import Pack
from latentfaces.errors import UserError
from latentfaces.files import file_lock

PIXELS_AT_ONCE = 64 * 256**2

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (b, 3, R, R) float in [-1, 1] -> mean and std of the posterior, each (b, c, h, w)."""


def images_at_once(resolution: int) -> int:
    """Return the batch size for encoding: at most 64, fewer for large images."""
    return min(64, max(1, PIXELS_AT_ONCE // resolution**2))


class LatentCache:
    """Posteriors of all images of a pack under one encoder, float16 on disk.

    The hashes of the encoder's weights and of the pack's pixels are in the file name. FFHQ at 256 pixels and 32x32x4
    latents takes 70,000 x 2 x 2 x 8 kB = 2.3 GB.

    Args:
        pack: the images.
        key: the hash of the encoder's weights.
        encode: the encoder.
        batch_size: images per batch; see `images_at_once`.
        mirrored: also encode the mirror images. A cache that has them is used in any case.
    """

    def __init__(
        self, pack: Pack, key: str, encode: Encode, batch_size: int | None = None, mirrored: bool = True
    ) -> None:
        self.pack, self.encode = pack, encode
        self.batch_size = batch_size or images_at_once(pack.images.shape[-1])
        # Precision is not in the name: bfloat16 moves a mean by a fortieth of the posterior's std.
        self.path = pack.folder / f"latents-{key}-{pack.sha256[:8]}.npy"
        self.views: tuple[bool, ...] = (False, True)
        if not mirrored and not self.path.exists():
            self.path, self.views = self.path.with_stem(f"{self.path.stem}-unmirrored"), (False,)
        self.array = ResumableArray(self.path, len(pack.images))

    def fill(self, device: torch.device, rank: int = 0, num_ranks: int = 1) -> None:
        """Encode this rank's part of the missing images. The first rank to write creates the file."""
        if self.path.exists():  # perhaps in a read-only folder
            return
        done = self.array.done if self.array.is_begun else np.zeros(self.array.num_rows, bool)
        starts = list(range(rank * self.batch_size, len(done), num_ranks * self.batch_size))
        for start in track(starts, f"Encoding {self.pack.folder.name}", disable=rank > 0):
            batch = slice(start, start + self.batch_size)
            if not done[batch].all():
                self.array.write(start, self.encode_batch(batch, device).float().cpu().numpy().astype(np.float16))
        self.array.flush()

    def finish(self) -> None:
        """Give the complete file its name; only one process calls this, after all ranks have filled their part."""
        if self.path.exists():
            return
        with file_lock(self.path):
            self.array.finish()

    @torch.no_grad()
    def encode_batch(self, batch: slice, device: torch.device) -> Tensor:
        """Return rows (b, V, 2, c, h, w) of the cache."""
        images = to_float(torch.from_numpy(self.pack.images[batch].copy()).to(device))
        encoded = [self.encode(images.flip(-1) if mirrored else images) for mirrored in self.views]
        return torch.stack([torch.stack(moments, dim=1) for moments in encoded], dim=1)

    def open(self) -> NDArray[np.float16]:
        """Map the cache: (N, V, 2, c, h, w) float16.

        The axes are image, view (unchanged and, if V is 2, mirrored), and mean or std.

        Raises:
            UserError: the file is damaged or of another pack.
        """
        moments: NDArray[np.float16] = open_array(self.path)
        if moments.ndim != 6 or moments.shape[:3] != (self.pack.manifest["num_images"], len(self.views), 2):
            raise UserError(f"{self.path} has shape {moments.shape}, not that of this pack. Delete it and run again.")
        return moments
