"""One picture's bytes -> a square uint8 array, by stated rules."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]


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
    image = to_rgb(ImageOps.exif_transpose(image))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((resolution, resolution), resize_filter(side, resolution), box=box))


def decode(data: bytes, resolution: int) -> tuple[Pixels, bool]:
    """Encoded picture -> (resolution, resolution, 3) uint8, and whether it had to be enlarged.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: damaged, cut short, no picture, or a bomb.
    """
    with Image.open(io.BytesIO(data)) as image:
        return center_square(image, resolution), min(image.size) < resolution
