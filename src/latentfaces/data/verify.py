"""Comparison of images and packs with their checksums."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.progress import track

from latentfaces.data.images import digest
from latentfaces.data.pack import Pack
from latentfaces.data.sources import BadImageError, Photos


def damaged_files(pack: Pack, source: Photos) -> Iterator[str]:
    """Yield a message for the pack and for each image that changed since it was packed."""
    if file_sha256(pack.folder / "images.npy") != pack.sha256:
        yield f"{pack.folder / 'images.npy'} has changed since it was written"
    yield from changed_files(source, track(pack.files, f"Verifying {source.name}"))


def changed_files(source: Photos, files: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield a message for each of some names and checksums (see `Pack.files`) if the image changed."""
    for name, sha256 in files:
        try:
            if digest(source.file_bytes(name)) != sha256:
                yield f"{source.root / name} has changed since it was packed"
        except BadImageError as error:
            yield str(error)


def file_sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
