"""Pictures -> one uint8 array on disk, made once and then read at the speed of memory.

A pack is a folder: `images.npy` (N, 3, R, R) uint8 and `manifest.json`, which says what the pixels are.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from latentfaces.data.sources import BadImageError, Source
from latentfaces.errors import UserError

FORMAT = 1
FFHQ_SIZE, FFHQ_TRAIN = 70_000, 60_000
MAX_SKIPPED = 0.01


@dataclass(frozen=True)
class Pack:
    """An open pack."""

    folder: Path
    manifest: dict[str, Any]

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """(N, 3, R, R) uint8, mapped from disk."""
        return np.load(self.folder / "images.npy", mmap_mode="r")

    @cached_property
    def val_indices(self) -> NDArray[np.int64]:
        """Pictures held out, in order."""
        return np.asarray(self.manifest["split"]["val"], dtype=np.int64)

    @cached_property
    def train_indices(self) -> NDArray[np.int64]:
        """Pictures to learn from, in order."""
        return np.setdiff1d(np.arange(self.manifest["num_images"]), self.val_indices)

    @property
    def sha256(self) -> str:
        """Hash of the pixels."""
        return self.manifest["sha256"]


def hold_out(identities: list[str] | None, num_images: int, every: int) -> tuple[str, list[int]]:
    """Which pictures are for validation: the rule in words, and their indices.

    By person where the people are known, so that nobody is both learned from and tested on; FFHQ's official split
    (Karras et al. 2019: the last 10,000 of 70,000) where the set is whole; otherwise every `every`-th picture.
    """
    if identities is not None:
        held_out = set(sorted(set(identities), key=lambda i: (len(i), i))[::every])
        return f"every {every}th identity", [i for i, person in enumerate(identities) if person in held_out]
    if num_images == FFHQ_SIZE:
        return "FFHQ's official split: the last 10,000", list(range(FFHQ_TRAIN, FFHQ_SIZE))
    return f"every {every}th picture", list(range(0, num_images, every))


def open_pack(folder: Path) -> Pack:
    """Open the pack in `folder`.

    Raises:
        UserError: the folder is not a pack of this format.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{folder} is not a whole pack (no readable manifest.json): delete it and run again") from None
    if manifest.get("format") != FORMAT:
        raise UserError(f"{folder} is a pack of format {manifest.get('format')}, not {FORMAT}: delete it and run again")
    return Pack(folder, manifest)


def find_or_write_pack(
    source: Source,
    folder: Path,
    resolution: int,
    on_bad_image: Literal["fail", "skip"] = "fail",
    val_every: int = 10,
) -> Pack:
    """The pack of `source` in `folder`, made now if it is not there yet.

    Args:
        source: the pictures.
        folder: where the pack lies; it must be this source's.
        resolution: height and width in pixels.
        on_bad_image: stop at a damaged picture, or leave it out (at most 1 % of all) and list it in the manifest.
        val_every: one picture (or person) of so many is held out for validation.
    """
    if folder.exists():
        pack = open_pack(folder)
        if pack.manifest["source"]["fingerprint"] != source.fingerprint:
            raise UserError(
                f"{folder} was packed from {pack.manifest['source']['name']} as it was then, which is not what "
                f"{source.name} is now: delete that folder to pack again"
            )
        if pack.manifest["resolution"] != resolution:
            raise UserError(f"{folder} holds pictures of {pack.manifest['resolution']} pixels, not {resolution}")
        if pack.manifest["split"]["val_every"] != val_every:
            raise UserError(
                f"{folder} holds out one in {pack.manifest['split']['val_every']}, not one in {val_every}: "
                "delete that folder to pack again, or leave data.val_every as it was"
            )
        return pack
    return write_pack(source, folder, resolution, on_bad_image, val_every)


def write_pack(source: Source, folder: Path, resolution: int, on_bad_image: str, val_every: int) -> Pack:
    """Read, square and resize all pictures of `source` into a new pack; arguments as `find_or_write_pack`."""
    names = source.names
    needed, free = len(names) * 3 * resolution**2, shutil.disk_usage(existing_parent(folder)).free
    if needed > free:
        raise UserError(
            f"packing {source.name} needs {needed / 1e9:.1f} GB in {folder}, only {free / 1e9:.1f} are free"
        )
    # Nothing bears the final name before it is whole: a killed run leaves a .partial folder, which the next removes.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    images = np.lib.format.open_memmap(
        partial / "images.npy", mode="w+", dtype=np.uint8, shape=(len(names), 3, resolution, resolution)
    )
    skipped: dict[int, str] = {}

    def convert(index: int) -> bool:
        try:
            pixels, enlarged = source.read(index, resolution)
        except BadImageError as error:
            if on_bad_image == "fail":
                remedy = "repair or remove it, or leave such files out with data.on_bad_image=skip"
                raise UserError(f"{error}: {remedy}") from error
            skipped[index] = str(error)
            if len(skipped) > max(1, MAX_SKIPPED * len(names)):
                raise UserError(f"{len(skipped)} of {len(names)} pictures cannot be read, the last: {error}") from error
            return False
        images[index] = pixels.transpose(2, 0, 1)
        return enlarged

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            converted = pool.map(convert, range(len(names)))
            num_enlarged = sum(track(converted, f"Packing {source.name}", total=len(names)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            shutil.rmtree(partial, ignore_errors=True)
            raise
    images.flush()

    kept = [index for index in range(len(names)) if index not in skipped]
    if skipped:  # rewritten without the gaps: rare, so simple
        np.save(partial / "images.npy", images[kept])
    people = source.identities()
    rule, val = hold_out([people[i] for i in kept] if people else None, len(kept), val_every)
    if num_enlarged:
        print(f"{num_enlarged} of {len(names)} pictures are smaller than {resolution} pixels and were enlarged")
    manifest = {
        "format": FORMAT,
        "source": {"name": source.name, "fingerprint": source.fingerprint, "licence": source.licence},
        "resolution": resolution,
        "num_images": len(kept),
        "resize_filter": "centre square; box for whole-number factors, Lanczos otherwise",
        "sha256": file_sha256(partial / "images.npy"),
        "split": {"rule": rule, "val_every": val_every, "val": val},
        "enlarged": num_enlarged,
        "skipped": [skipped[index] for index in sorted(skipped)],
        "names": [names[index] for index in kept],
        "written_by": f"latentfaces {version('latentfaces')}",
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    partial.replace(folder)
    return Pack(folder, manifest)


def existing_parent(path: Path) -> Path:
    """The nearest folder above `path` that exists."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
