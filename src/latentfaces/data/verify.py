"""Comparison of images and packs with their checksums."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from rich.progress import track

from latentfaces.data.images import digest
from latentfaces.data.pack import Pack
from latentfaces.data.sources import BadImageError, Photos


def damaged_files(pack: Pack, source: Photos) -> Iterator[str]:
    """Yield a message for the pack and for each image that changed since it was packed."""
    if file_sha256(pack.folder / "images.npy") != pack.sha256:
        yield f"{pack.folder / 'images.npy'} has changed since it was written"
    yield from changed_files(pack, source)


def changed_files(pack: Pack, source: Photos, step: int = 1) -> Iterator[str]:
    """Yield a message for every `step`-th image if it changed since it was packed."""
    packed = list(zip(pack.manifest["names"], pack.manifest["sha256_of_sources"], strict=True))
    for name, sha256 in track(packed[::step], f"Verifying {source.name}", disable=step > 1):
        try:
            if digest(source.file_bytes(name)) != sha256:
                yield f"{source.root / name} has changed since it was packed"
        except BadImageError as error:
            yield str(error)


def file_sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
