"""One picture's bytes -> a square uint8 array, by stated rules."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

ORIENTATION_TAG = 0x0112
UPRIGHT = {  # EXIF orientation -> what turns the picture upright (EXIF 2.32, tag 274)
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def resize_filter(side: int, resolution: int) -> Image.Resampling:
    """Box (the exact mean) for whole-number factors, Lanczos otherwise."""
    return Image.Resampling.BOX if side % resolution == 0 else Image.Resampling.LANCZOS


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: 16 bit scaled to 8, transparency laid on white, grey and CMYK converted."""
    if image.mode.startswith("I"):
        # Pillow clips 16-bit values at 255, which turns nearly every picture white.
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def center_square(image: Image.Image, resolution: int) -> Pixels:
    """Upright, RGB, the largest centred square, resized: (resolution, resolution, 3) uint8."""
    # Pillow's own exif_transpose also rewrites the tags, and fails on a photo whose other tags are damaged.
    turn = UPRIGHT.get(image.getexif().get(ORIENTATION_TAG))
    image = to_rgb(image if turn is None else image.transpose(turn))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((resolution, resolution), resize_filter(side, resolution), box=box))


def decode(data: bytes, resolution: int) -> tuple[Pixels, bool]:
    """Encoded picture -> (resolution, resolution, 3) uint8, and whether it had to be enlarged.

    Raises:
        Exception: of many kinds: damaged, cut short, no picture, or a decompression bomb.
    """
    with Image.open(io.BytesIO(data)) as image:
        return center_square(image, resolution), min(image.size) < resolution
