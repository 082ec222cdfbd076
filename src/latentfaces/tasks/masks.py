"""The user's mask for inpainting."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from latentfaces.data.images import open_image, to_rgb, turned_upright
from latentfaces.errors import UserError, warn
from latentfaces.tasks.photos import OwnPhotos

MAX_GRAY = 0.2
"""Largest fraction of gray pixels in a mask, whose soft edges are gray."""


def read_mask(mask: str, photos: OwnPhotos, resolution: int) -> Tensor:
    """Return the hole (1, 1, R, R) bool: the white or transparent pixels of a mask, cropped like the photos.

    Raises:
        UserError: the mask cannot be read, has another shape than a photo, or has no white pixel in the crop.
    """
    key = f"task.mask={mask}"
    try:
        with open_image(Path(mask)) as image:
            gray = to_rgb(turned_upright(image)).convert("L")
    except FileNotFoundError:
        raise UserError(f"{key} does not exist") from None
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"{key} cannot be read ({error}). Give a black and white PNG.") from error
    width, height = gray.size
    for name, (photo_width, photo_height) in zip(photos.names, photos.sizes, strict=True):
        # Equal shapes, up to rounding of the smaller one's sides.
        if abs(width * photo_height - height * photo_width) > max(width, height, photo_width, photo_height):
            raise UserError(
                f"{key} has {width}x{height} pixels, {name} {photo_width}x{photo_height}. Give a mask of the photo's "
                "shape."
            )
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    pixels = gray.resize((resolution, resolution), Image.Resampling.NEAREST, box=box)
    values = np.asarray(pixels)
    if ((values > 64) & (values < 192)).mean() > MAX_GRAY:
        raise UserError(f"{key} is not black and white. Paint white what is to be filled, and black all else.")
    hole = torch.from_numpy(values >= 128)[None, None]
    if not hole.any():
        raise UserError(f"{key} is black in the central square of the photo. Paint white what is to be filled.")
    if hole.all():
        warn(f"{key} is white all over: nothing of the photo is kept. Paint black what is to stay.")
    return hole


def shrunk(hole: Tensor, height: int, width: int) -> Tensor:
    """Downsample a hole (1, 1, R, R) bool to (1, 1, height, width), true where any of its pixels is."""
    return F.adaptive_max_pool2d(hole.float(), (height, width)) > 0


def feathered(hole: Tensor, pixels: int) -> Tensor:
    """Return the weight (1, 1, R, R) of the filling: 0 outside the hole, rising to 1 over `pixels` inside its edge.

    Narrow holes get a sharper edge, so that the weight reaches 1 somewhere.
    """
    layer, depth = hole.float(), torch.zeros(hole.shape)
    for _ in range(pixels + 1):
        depth = depth + layer
        layer = -F.max_pool2d(-layer, 3, stride=1, padding=1)  # erode by a pixel, but not from the image border
    return depth / depth.max()
