"""Verification of images and packs by checksum."""

from collections.abc import Iterator

from rich.progress import track

from latentfaces.data.images import digest
from latentfaces.data.pack import Pack
from latentfaces.data.packing import file_sha256
from latentfaces.data.sources import BadImageError, Photos


def damaged_files(pack: Pack, source: Photos) -> Iterator[str]:
    """Yield a message for the pack and for each image that changed since it was packed."""
    if file_sha256(pack.folder / "images.npy") != pack.sha256:
        yield f"{pack.folder / 'images.npy'} has changed since it was written"
    packed = zip(pack.manifest["names"], pack.manifest["sha256_of_sources"], strict=True)
    for name, sha256 in track(list(packed), f"Verifying {source.name}"):
        try:
            if digest(source.file_bytes(name)) != sha256:
                yield f"{source.root / name} has changed since it was packed"
        except BadImageError as error:
            yield str(error)
