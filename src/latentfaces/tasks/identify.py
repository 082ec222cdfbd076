"""Marks of a file, which may be untrusted."""

import io
import json
import mmap
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from latentfaces.data.images import open_image
from latentfaces.errors import UserError
from latentfaces.export.credentials import read_credentials
from latentfaces.marks import NEWSCODES, RECIPE

SOURCE = re.compile(rb"DigitalSourceType(?:=[\"']|>)" + re.escape(NEWSCODES).encode() + rb"(\w{1,64})")
MAX_TEXT = 2**20
"""Bytes of a text that is read from an .npz."""


def identify(image: str | None) -> list[str]:
    """Return a line for each mark of a PNG, GIF, MP4 or .npz of latentfaces, or of an image of another program."""
    if image is None:
        raise UserError("task=identify needs a file. Give image=FILE.")
    path = Path(image)
    try:
        source, recipe = read_source(path), read_recipe(path)
    except (OSError, ValueError) as error:
        raise UserError(f"image={path} cannot be read ({error}). Give another file.") from None
    return [
        f"source type: {source or 'none'}",
        f"recipe: {json.dumps(recipe) if recipe else 'none'}",
        f"c2pa: {read_credentials(path)}",
    ]


def read_source(path: Path) -> str | None:
    """Return the source type that a file of any format has, also one of another program, or None."""
    if zipfile.is_zipfile(path):
        return found_in(text_of_npz(path, "xmp").encode())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return found_in(data)


def found_in(data: bytes | mmap.mmap) -> str | None:
    """Return the first source type in the data."""
    found = SOURCE.search(data)
    return found[1].decode() if found else None


def read_recipe(path: Path) -> dict[str, Any] | None:
    """Return the metadata that reproduce the images of a file, which may be untrusted, or None."""
    if zipfile.is_zipfile(path):
        text = text_of_npz(path, RECIPE)
    elif path.suffix.lower() == ".mp4":
        text = text_of_mp4(path.read_bytes())
    else:
        with open_image(path) as image:
            text = image.info.get(RECIPE) or image.info.get("comment", "")
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) else None


def text_of_npz(path: Path, name: str) -> str:
    """Return a string in an .npz; empty if it has none."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.file_size > MAX_TEXT:
                return ""
            return str(np.load(io.BytesIO(archive.read(member)), allow_pickle=False))
    except Exception:  # zipfile and numpy have a dozen ways to say that a member is damaged
        return ""


def text_of_mp4(data: bytes) -> str:
    """Return the comment of an MP4: 8 bytes of the box, 8 of type and language, then the text."""
    start = data.find(b"\xa9cmt")
    size = int.from_bytes(data[start + 4 : start + 8], "big")
    return data[start + 20 : start + 4 + size].decode(errors="replace") if start > 0 else ""
