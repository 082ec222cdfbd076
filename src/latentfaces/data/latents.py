"""Every picture encoded once: stage 2 then never runs the encoder again."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from latentfaces.data.images import to_float
from latentfaces.data.pack import Pack
from latentfaces.data.rows import MappedRows, open_rows
from latentfaces.errors import UserError
from latentfaces.files import file_lock, require_space

PIXELS_AT_ONCE = 64 * 256**2

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (b, 3, R, R) float in [-1, 1] -> mean and standard deviation of the posterior, each (b, c, h, w)."""


def images_at_once(resolution: int) -> int:
    """How many pictures a network looks at together: no more than 64, and of large ones fewer."""
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
        self.path = pack.folder / f"latents-{key}-{pack.sha256[:8]}.npy"
        self.partial = self.path.with_suffix(".partial.npy")
        self.state_path = self.path.with_suffix(".state.npy")

    def begin(self, device: torch.device) -> None:
        """Make the empty file, unless it is there, whole or begun; one process does this."""
        if self.path.exists():  # perhaps where nothing may be written, not even a lock
            return
        with file_lock(self.path):
            if not self.path.exists() and not self.state_path.exists():
                self.make_empty(device)

    def make_empty(self, device: torch.device) -> None:
        """The file, and beside it a byte per picture that says whether it is encoded."""
        mean, _ = self.encode_batch(slice(0, 1), device, mirrored=False)
        shape = (len(self.pack.images), 2, 2, *mean.shape[1:])
        require_space(self.path, 2.0 * np.prod(shape), f"the cache of {shape[0]} latents")
        np.lib.format.open_memmap(self.partial, mode="w+", dtype=np.float16, shape=shape).flush()
        np.save(self.state_path, np.zeros(shape[0], np.uint8))

    def fill(self, device: torch.device, rank: int = 0, num_ranks: int = 1) -> None:
        """Encode this rank's share of what is not encoded yet."""
        if self.path.exists():
            return
        try:
            # Not through a memory map: of a page with rows of two machines the later to write it would win.
            moments, done = (open_rows(path, writable=True) for path in (self.partial, self.state_path))
        except FileNotFoundError:
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
            for number, row in enumerate(rows, start):
                moments[number] = row
                done[number] = np.uint8(1)  # last: a kill before it encodes this batch again
        moments.flush()
        done.flush()

    def finish(self) -> None:
        """Give the whole file its name; one process does this, when all ranks have filled their share."""
        if self.path.exists():
            return
        with file_lock(self.path):
            if not self.path.exists():
                self.partial.replace(self.path)
                self.state_path.unlink()

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
        try:
            moments: NDArray[np.float16] = np.load(self.path, mmap_mode="r")
        except (ValueError, EOFError):  # shorter than it says, or another kind of file
            raise UserError(f"{self.path} is damaged: delete it and run again") from None
        if moments.ndim != 6 or moments.shape[:3] != (self.pack.manifest["num_images"], 2, 2):
            raise UserError(f"{self.path} has shape {moments.shape}, which is not this pack's: delete it and run again")
        return moments

    def views(self) -> MappedRows:
        """The same as (2 N, 2, c, h, w), for reading here and there for hours.

        Raises:
            UserError: as for `open`.
        """
        self.open()
        return MappedRows(self.path, axes=2)
