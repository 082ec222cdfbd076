"""Machine-readable marks of generated images: the IPTC property DigitalSourceType, as XMP.

PNG, GIF and MP4 hold it where part 3 of the XMP specification says, an .npz as an array of its own.
"""

import io
import json
import mmap
import re
import zipfile
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentfaces import __version__

Source = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
"""Terms of the IPTC for generated images, and for images that a model made from a photo."""
GENERATED: Source = "trainedAlgorithmicMedia"
EDITED: Source = "compositeWithTrainedAlgorithmicMedia"
NEWSCODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOURCE = re.compile(rb"DigitalSourceType(?:=[\"']|>)" + re.escape(NEWSCODES).encode() + rb"(\w{1,64})")
RECIPE = "latentfaces"
"""Name of the metadata that reproduce an image."""
MP4_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])
"""Makes a reader that takes the XMP for blocks of data end after it."""
FORMATS = ("GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_TEXT = 2**20
"""Bytes of a text that is read from an untrusted .npz."""
Recipe = dict[str, str]
"""Metadata that reproduce an image, as JSON by `RECIPE`; empty if there are none."""


def xmp(source: Source) -> str:
    """Return an XMP packet with the source type."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f"xmp:CreatorTool={quoteattr(f'latentfaces {__version__}')} "
        f'Iptc4xmpExt:DigitalSourceType="{NEWSCODES}{source}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )


def png_info(source: Source, recipe: Recipe | None = None) -> PngInfo:
    """Return the text chunks of a PNG."""
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(source))
    for key, value in (recipe or {}).items():
        info.add_itxt(key, value)
    return info


def mark_gif(data: bytes, source: Source) -> bytes:
    """Return a GIF with XMP, added as application extension before the last byte."""
    return data[:-1] + b"\x21\xff\x0bXMP DataXMP" + xmp(source).encode() + GIF_TRAILER + data[-1:]


def mark_mp4(data: bytes, source: Source) -> bytes:
    """Return an MP4 with XMP, added as the last box."""
    content = b"uuid" + MP4_XMP + xmp(source).encode()
    return data + (len(content) + 4).to_bytes(4, "big") + content


def mark_npz(archive: zipfile.ZipFile, source: Source, recipe: Recipe) -> None:
    """Add the arrays `xmp` and those of the recipe, each one string, to an open .npz."""
    for name, text in {"xmp": xmp(source), **recipe}.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.array(text), allow_pickle=False)
        archive.writestr(f"{name}.npy", buffer.getvalue())


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
        with Image.open(path, formats=FORMATS) as image:
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
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return ""


def text_of_mp4(data: bytes) -> str:
    """Return the comment of an MP4: 8 bytes of the box, 8 of type and language, then the text."""
    start = data.find(b"\xa9cmt")
    size = int.from_bytes(data[start + 4 : start + 8], "big")
    return data[start + 20 : start + 4 + size].decode(errors="replace") if start > 0 else ""
