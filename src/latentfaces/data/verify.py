"""Comparison of images and packs with their checksums."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.progress import track

from latentfaces.data.images import digest
from latentfaces.data.pack import Pack
from latentfaces.data.sources import FFHQ_JSON, BadImageError, Photos
from latentfaces.errors import UserError


def damaged_files(pack: Pack, source: Photos) -> Iterator[str]:
    """Yield a message for the pack and for each image that changed since it was packed, or is not FFHQ's by MD5."""
    if file_sha256(pack.folder / "images.npy") != pack.sha256:
        yield f"{pack.folder / 'images.npy'} has changed since it was written"
    yield from changed_files(source, track(pack.files, f"Verifying {source.name}"), official_md5(source))


def official_md5(source: Photos) -> dict[str, str]:
    """Return the MD5 of images by name, from FFHQ's ffhq-dataset-v2.json in the root or next to it, if it is there.

    Raises:
        UserError: the list is damaged.
    """
    path = next((p for p in (source.root / FFHQ_JSON, source.root.parent / FFHQ_JSON) if p.is_file()), None)
    if path is None:
        return {}
    try:
        files = [entry[kind] for entry in json.loads(path.read_text()).values() for kind in ("image", "thumbnail")]
        listed = {ffhq_key(Path(file["file_path"])): file["file_md5"] for file in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}). Fetch it again or remove it.") from error
    keys = {name: ffhq_key(Path(source.root.name) / name) for name in source.names}
    return {name: listed[key] for name, key in keys.items() if key in listed}


def ffhq_key(path: Path) -> tuple[str, str]:
    """Return what identifies a file of FFHQ: the folder of its size, and its name."""
    sizes = [part for part in path.parts[:-1] if part.startswith(("images", "thumbnails"))]
    return sizes[-1] if sizes else "", path.name


def changed_files(
    source: Photos, files: Iterable[tuple[str, str]], official: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yield a message for each of some names and checksums (see `Pack.files`) if the image changed.

    Args:
        source: the images.
        files: names and checksums of some of them.
        official: their MD5 by name, which also must be right.
    """
    official = official or {}
    for name, sha256 in files:
        try:
            data = source.file_bytes(name)
            if digest(data) != sha256:
                yield f"{source.root / name} has changed since it was packed"
            elif name in official and hashlib.md5(data).hexdigest() != official[name]:
                yield f"{source.root / name} is not FFHQ's (its MD5 differs)"
        except BadImageError as error:
            yield str(error)


def file_sha256(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
