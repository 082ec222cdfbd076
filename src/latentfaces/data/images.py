"""Decode the bytes of one image to a square uint8 array."""

import hashlib
import io
import warnings
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

Pixels = NDArray[np.uint8]
FilterName = Literal["auto", "box", "bilinear", "bicubic", "lanczos"]

MAX_PIXELS = 2**28  # FFHQ in the wild has at most 2^26
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow rejects photos of 179 megapixels, with other words
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `open_image` raises an error instead
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
HAS_HEIF = find_spec("pillow_heif") is not None  # the extra photos
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**26  # editors store their history as text
SRGB = ImageCms.createProfile("sRGB")

ORIENTATION_TAG = 0x0112
UPRIGHT = {  # EXIF 2.32, tag 274
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

MINUS_ONE = torch.tensor(-1.0)
PER_LEVEL = float(np.nextafter(np.float32(1 / 127.5), np.float32(0)))  # rounded down: 255 gives at most 1


class Picture(NamedTuple):
    """A decoded image."""

    pixels: Pixels  # (3, R, R) uint8
    enlarged: bool  # the file had fewer than R pixels on a side
    sha256: str  # of the file, see `digest`


@cache
def readable_formats() -> tuple[str, ...]:
    """Return `FORMATS`, and HEIF where the extra `photos` is installed."""
    if not HAS_HEIF:
        return FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Open an image in one of `readable_formats`. For others, such as PostScript, Pillow may start a program.

    Raises:
        OSError: the file is not an image of these formats.
        ValueError: the image has too many pixels, or pixels without a known range.
    """
    formats = readable_formats()
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"not one of {', '.join(formats)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}")
    # Pillow spreads neither the 12 bits of a TIFF nor the values of 32 bits over a known range. Of 16 bits it does not
    # turn a negative into a positive.
    tags = image.tag_v2 if image.format == "TIFF" else {}  # type: ignore[attr-defined]
    is_negative = image.mode.startswith("I;16") and tags.get(262) == 0
    if image.mode in ("F", "I") or tags.get(258) == (12,) or is_negative:
        raise ValueError("only pixels of 8 bits, and of 16 bits with 0 as black, are supported. Convert it.")
    return image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where it is unknown."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # damaged metadata raises errors of many kinds, and the pixels may be fine
        return 1
    return value if isinstance(value, int) else 1


@lru_cache(maxsize=16)
def transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of images with this ICC profile, None where it only rounds or the profile is unusable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, SRGB, mode, "RGB")
        # The description proves nothing: there are profiles called sRGB with a linear curve.
        probe = Image.frombytes("RGB", (16, 16), np.random.default_rng(0).bytes(16 * 16 * 3)).convert(mode)
        changes = np.asarray(ImageCms.applyTransform(probe, transform), int) - np.asarray(probe.convert("RGB"), int)
        return transform if np.abs(changes).max() > 1 else None
    except (ImageCms.PyCMSError, OSError):
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: 16 bit scaled to 8, ICC profiles to sRGB, transparency on white."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        # Pillow clips 16-bit values at 255, which turns most images white.
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    if alpha is not None:
        image = image.convert(image.mode[:-1])
    has_profile = isinstance(profile, bytes) and image.mode in ("L", "RGB", "CMYK")  # a tag of a TIFF has any type
    if has_profile and (transform := transform_to_srgb(profile, image.mode)):
        image = ImageCms.applyTransform(image, transform) or image
    image = image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
    if alpha is None:
        return image
    image.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def turned_upright(image: Image.Image) -> Image.Image:
    """Rotate or flip an image as its EXIF orientation says."""
    # Pillow rotates a TIFF when it loads it, and removes the tag. Its exif_transpose also rewrites the other tags, and
    # fails where these are damaged.
    image.load()
    turn = UPRIGHT.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def center_square(image: Image.Image, resolution: int, resize_filter: FilterName = "auto") -> Pixels:
    """Rotate, convert to RGB, crop the largest central square and resize it: (3, resolution, resolution) uint8.

    The filter "auto" is the mean of the pixels for integer factors, else Lanczos. The others are Pillow's.
    """
    image = to_rgb(turned_upright(image))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if image.size == (resolution, resolution):
        small = image
    elif resize_filter == "auto" and side % resolution == 0:
        # Pillow's BOX rounds up in each direction, which brightens images by half a level. This rounds once.
        small = image.reduce(side // resolution, box=box)
    else:
        resample = Image.Resampling["LANCZOS" if resize_filter == "auto" else resize_filter.upper()]
        small = image.resize((resolution, resolution), resample, box=box)
    planes = b"".join(small.tobytes("raw", band) for band in "RGB")  # 4 times as fast as a transpose
    return np.frombuffer(planes, np.uint8).reshape(3, resolution, resolution)


def decode(data: bytes, resolution: int, resize_filter: FilterName = "auto") -> Picture:
    """Decode an image to a square. The filter "auto" decodes large JPEGs at reduced scale.

    Raises:
        Exception: of many kinds, where the image is damaged or not one that `open_image` reads.
    """
    with open_image(io.BytesIO(data)) as image:
        enlarged = min(image.size) < resolution
        image.decodermaxblock = len(data)  # type: ignore[attr-defined]  # faster than Pillow's 64 kB at a time
        if resize_filter == "auto":
            # Half the time at 1/2, 1/4 or 1/8. From 512 to 256 pixels it differs from the mean by half a level of 255.
            image.draft(None, (resolution, resolution))
        pixels = center_square(image, resolution, resize_filter)
    return Picture(pixels, enlarged, digest(data))


def decode_photo(data: bytes) -> Image.Image:
    """Decode an image of any shape, upright and in RGB.

    Raises:
        Exception: as `decode`.
    """
    with open_image(io.BytesIO(data)) as image:
        return to_rgb(turned_upright(image))


def digest(data: bytes) -> str:
    """Return the first 32 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def to_float(images: Tensor, mirrored: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Convert uint8 images (b, c, h, w) to float32 in [-1, 1] in `out`, if given, and flip those of `mirrored` (b,)."""
    floats = torch.empty(images.shape, device=images.device) if out is None else out
    if images.device.type != "cpu":
        torch.add(MINUS_ONE, floats.copy_(images), alpha=PER_LEVEL, out=floats)
        return floats if mirrored is None else torch.where(mirrored[:, None, None, None], floats.flip(-1), floats)
    flags = [False] * len(images) if mirrored is None else mirrored.tolist()
    # One image at a time stays in the CPU cache.
    for target, image, flip in zip(floats, images, flags, strict=True):
        torch.add(MINUS_ONE, target.copy_(image.flip(-1) if flip else image), alpha=PER_LEVEL, out=target)
    return floats


def to_uint8(images: Tensor) -> Tensor:
    """Convert floats in [-1, 1] to uint8, rounded and clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
