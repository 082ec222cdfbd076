"""Packs: a folder with `images.npy` (N, 3, R, R) uint8, which is mapped, and `manifest.json`, which describes it."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentfaces.data.arrays import open_array
from latentfaces.errors import UserError
from latentfaces.files import read_json

FORMAT = 3
FFHQ_SIZE, FFHQ_TRAIN = 70_000, 60_000


@dataclass(frozen=True)
class Pack:
    """An open pack."""

    folder: Path
    manifest: dict[str, Any]

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """(N, 3, R, R) uint8, mapped from disk.

        Raises:
            UserError: the file is missing or damaged.
        """
        return open_array(self.folder / "images.npy")

    @cached_property
    def val_indices(self) -> NDArray[np.int64]:
        """Held-out images, in order."""
        return np.asarray(self.manifest["split"]["val"], dtype=np.int64)

    @property
    def tuning_indices(self) -> NDArray[np.int64]:
        """Half of the held-out images, for choices by a distance: task=tune, callbacks.face_metrics."""
        split = self.manifest["split"]
        return np.asarray(split.get("tuning", split["val"][::2]), dtype=np.int64)  # earlier packs do not list it

    @property
    def test_indices(self) -> NDArray[np.int64]:
        """The other half of the held-out images, on which task=evaluate reports."""
        return np.setdiff1d(self.val_indices, self.tuning_indices)

    @cached_property
    def train_indices(self) -> NDArray[np.int64]:
        """Training images, in order."""
        return np.setdiff1d(np.arange(self.manifest["num_images"]), self.val_indices)

    @property
    def files(self) -> list[tuple[str, str]]:
        """Name and checksum of the file of each image."""
        return list(zip(self.manifest["names"], self.manifest["sha256_of_sources"], strict=True))

    @property
    def sha256(self) -> str:
        """Hash of the pixels."""
        return self.manifest["sha256"]


def is_whole_ffhq(names: list[str]) -> bool:
    """Whether the names are 00000 to 69999, in any format and folders."""
    return len(names) == FFHQ_SIZE and all(Path(name).stem == f"{i:05d}" for i, name in enumerate(names))


def hold_out(names: list[str], identities: list[str] | None, every: int) -> tuple[str, list[int]]:
    """Return the validation split of named images: the rule as text, and the indices.

    Known identities are split, so that no person is in both parts. The complete FFHQ has its official split (Karras et
    al. 2019: the last 10,000 of 70,000). Otherwise every `every`-th image is held out.
    """
    if identities is not None:
        held_out = set(sorted(set(identities), key=lambda i: (len(i), i))[::every])
        return f"one identity in {every}", [i for i, person in enumerate(identities) if person in held_out]
    if is_whole_ffhq(names):
        return "FFHQ's official split: the last 10,000", list(range(FFHQ_TRAIN, FFHQ_SIZE))
    return f"one image in {every}", list(range(0, len(names), every))


def tuning_half(val: list[int], identities: list[str] | None) -> list[int]:
    """Return half of the held-out images. No person is in both halves, unless all images are of one person."""
    if identities is None or len({identities[i] for i in val}) < 2:
        return val[::2]
    counts = Counter(identities[i] for i in val)
    halves: tuple[list[int], list[int]] = [], []
    largest_first = sorted(val, key=lambda i: (-counts[identities[i]], identities[i]))
    for _, images in groupby(largest_first, key=identities.__getitem__):
        min(halves, key=len).extend(images)
    return sorted(halves[0])


def pack_if_here(folder: str | Path | None) -> Pack | None:
    """Open the pack in `folder`, or return None if it is not on this machine."""
    return open_pack(Path(folder)) if folder is not None and Path(folder).exists() else None


def open_pack(folder: Path) -> Pack:
    """Open the pack in `folder`.

    Raises:
        UserError: the folder is missing, or not a complete pack of this format.
    """
    if not folder.is_dir():
        raise UserError(
            f"The images of this run are not here: {folder} does not exist. Run the command where the run was "
            f"trained, or copy the pack to {folder.absolute()}."
        )
    manifest = read_json(folder / "manifest.json")
    if not manifest:
        raise UserError(f"{folder} is not a complete pack (no readable manifest.json). Delete it and run again.")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{folder} is a pack of format {manifest.get('format')}, not {FORMAT}. Delete it and run again."
        )
    pack = Pack(folder, manifest)
    with contextlib.suppress(UserError):
        if len(pack.images) == manifest["num_images"]:
            return pack
    raise UserError(f"{folder} is not a complete pack (images.npy is missing or damaged). Delete it and run again.")
