"""Machine-readable marks of generated images: the IPTC property DigitalSourceType, as XMP.

PNG, GIF and MP4 hold it where part 3 of the XMP specification says, an .npz as an array of its own.
"""

import io
import zipfile
from typing import Literal
from xml.sax.saxutils import quoteattr

import numpy as np
from PIL.PngImagePlugin import PngInfo

from latentfaces import __version__

Source = Literal["trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"]
"""Terms of the IPTC for generated images, and for images that a model made from a photo."""
GENERATED: Source = "trainedAlgorithmicMedia"
EDITED: Source = "compositeWithTrainedAlgorithmicMedia"
NEWSCODES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
RECIPE = "latentfaces"
"""Name of the metadata that reproduce an image."""
MP4_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])
"""Makes a reader that takes the XMP for blocks of data end after it."""


def xmp(source: Source) -> str:
    """Return an XMP packet with the source type."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f"xmp:CreatorTool={quoteattr(f'latentfaces {__version__}')} "
        f'Iptc4xmpExt:DigitalSourceType="{NEWSCODES}{source}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )


def png_info(source: Source, recipe: str = "") -> PngInfo:
    """Return the text chunks of a PNG. The recipe is JSON, or empty."""
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(source))
    if recipe:
        info.add_itxt(RECIPE, recipe)
    return info


def mark_gif(data: bytes, source: Source) -> bytes:
    """Return a GIF with XMP, added as application extension before the last byte."""
    return data[:-1] + b"\x21\xff\x0bXMP DataXMP" + xmp(source).encode() + GIF_TRAILER + data[-1:]


def mark_mp4(data: bytes, source: Source) -> bytes:
    """Return an MP4 with XMP, added as the last box."""
    content = b"uuid" + MP4_XMP + xmp(source).encode()
    return data + (len(content) + 4).to_bytes(4, "big") + content


def mark_npz(archive: zipfile.ZipFile, source: Source, recipe: str) -> None:
    """Add the arrays `xmp` and `RECIPE`, each one string, to an open .npz."""
    for name, text in {"xmp": xmp(source), RECIPE: recipe}.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.array(text), allow_pickle=False)
        archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())  # without the time, so that bytes repeat
