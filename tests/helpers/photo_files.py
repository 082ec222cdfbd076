"""Images, folders and archives of them, intact and damaged."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture_bytes(number: int, name: str = "x.png") -> bytes:
    """Return a 12 x 12 picture that `number` decides, in the format of `name`."""
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    kind = {".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}.get(Path(name).suffix.lower(), "PNG")
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files, by their name in `folder`."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write files into an archive, in the given order."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def photos(names: list[str]) -> dict[str, bytes]:
    """Return a different picture under each name."""
    return {name: picture_bytes(number, name) for number, name in enumerate(names)}


def rewrite(path: Path, member: str, at: dict[bytes, int], layout: str, value: int) -> None:
    """Change a number in a member's headers: `at` gives its place after each header's signature."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        starts = {b"PK\3\4": archive.getinfo(member).header_offset}
    starts[b"PK\1\2"] = data.rindex(member.encode()) - 46
    for signature, place in at.items():
        assert data[starts[signature] : starts[signature] + 4] == signature
        struct.pack_into(layout, data, starts[signature] + place, value)
    path.write_bytes(data)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return all that lies in a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}
