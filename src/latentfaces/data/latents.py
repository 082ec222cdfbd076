"""Every picture encoded once: stage 2 then never runs the encoder again."""

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
from latentfaces.files import file_lock, require_space

PIXELS_AT_ONCE = 64 * 256**2

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (b, 3, R, R) float in [-1, 1] -> mean and standard deviation of the posterior, each (b, c, h, w)."""


def images_at_once(resolution: int) -> int:
    """Return the batch size for encoding: at most 64, fewer for large images."""
    return min(64, max(1, PIXELS_AT_ONCE // resolution**2))


class LatentCache:
    """The posteriors of all pictures of a pack under one encoder, as they are and mirrored, float16 on disk.

    The file's name holds the hashes of the encoder's weights and of the pack's pixels, so that other weights or pixels
    make another file. FFHQ at 256 pixels and 32x32x4 latents takes 70,000 x 2 x 2 x 8 kB = 2.3 GB.

    Args:
        pack: the pictures.
        key: the hash of the encoder's weights.
        encode: the encoder.
        batch_size: pictures at once; see `images_at_once`.
    """

    def __init__(self, pack: Pack, key: str, encode: Encode, batch_size: int | None = None) -> None:
        self.pack, self.encode = pack, encode
        self.batch_size = batch_size or images_at_once(pack.images.shape[-1])
        # Precision is not in the name: bfloat16 moves a mean by a fortieth of the posterior's std.
        self.path = pack.folder / f"latents-{key}-{pack.sha256[:8]}.npy"
        self.array = ResumableArray(self.path, len(pack.images))

    def begin(self, device: torch.device) -> None:
        """Create the empty file unless there is one, complete or not; only one process calls this."""
        if self.path.exists():  # perhaps where nothing may be written, not even a lock
            return
        with file_lock(self.path):
            if not self.path.exists() and not self.array.is_begun:
                mean, _ = self.encode_batch(slice(0, 1), device, mirrored=False)
                shape = (2, 2, *mean.shape[1:])
                num_rows = self.array.num_rows
                require_space(self.path, 2.0 * num_rows * np.prod(shape), f"the cache of {num_rows} latents")
                self.array.create(shape, np.float16)

    def fill(self, device: torch.device, rank: int = 0, num_ranks: int = 1) -> None:
        """Encode this rank's part of the missing images."""
        try:
            if self.path.exists():
                return
            self.array.open()
            done = self.array.done
        except UserError:
            if self.path.exists():  # another training has just finished the same cache
                return
            raise
        starts = list(range(rank * self.batch_size, len(done), num_ranks * self.batch_size))
        for start in track(starts, f"Encoding {self.pack.folder.name}", disable=rank > 0):
            batch = slice(start, start + self.batch_size)
            if done[batch].all():
                continue
            views = [torch.stack(self.encode_batch(batch, device, mirrored), dim=1) for mirrored in (False, True)]
            rows = torch.stack(views, dim=1).float().cpu().numpy().astype(np.float16)
            self.array.write(start, rows)
        self.array.flush()

    def finish(self) -> None:
        """Give the complete file its name; only one process calls this, after all ranks have filled their part."""
        if self.path.exists():
            return
        with file_lock(self.path):
            self.array.finish()

    @torch.no_grad()
    def encode_batch(self, batch: slice, device: torch.device, mirrored: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a few pictures."""
        images = to_float(torch.from_numpy(self.pack.images[batch].copy()).to(device))
        return self.encode(images.flip(-1) if mirrored else images)

    def open(self) -> NDArray[np.float16]:
        """(N, 2, 2, c, h, w) float16, mapped from disk: picture, as it is or mirrored, mean or standard deviation.

        Raises:
            UserError: the file is not of this pack.
        """
        moments: NDArray[np.float16] = open_array(self.path)
        if moments.ndim != 6 or moments.shape[:3] != (self.pack.manifest["num_images"], 2, 2):
            raise UserError(f"{self.path} has shape {moments.shape}, which is not this pack's: delete it and run again")
        return moments

    def views(self) -> NDArray[np.float16]:
        """Return the array of `open` as (2 N, 2, c, h, w)."""
        moments = self.open()
        return moments.reshape(-1, *moments.shape[2:])
