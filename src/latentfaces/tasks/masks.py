"""The user's mask for inpainting."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from latentfaces.data.crops import warp
from latentfaces.data.images import decode_photo
from latentfaces.errors import UserError
from latentfaces.tasks.photos import OwnPhotos

MAX_GRAY = 0.2
"""Largest fraction of gray pixels in a mask, whose soft edges are gray."""


def read_mask(mask: str, photos: OwnPhotos, resolution: int) -> tuple[Tensor, Image.Image]:
    """Return the hole of each photo (n, 1, R, R) bool, cropped like it, and the full mask in mode L.

    White and transparent pixels are the hole.

    Raises:
        UserError: the mask cannot be read, has another shape than a photo, or has no white pixel in the crop.
    """
    key = f"task.mask={mask}"
    try:
        gray = decode_photo(Path(mask).read_bytes()).convert("L")
    except Exception as error:  # damaged images raise errors of many kinds
        raise UserError(f"{key} cannot be read ({error}). Give a black and white PNG.") from error
    width, height = gray.size
    for name, (photo_width, photo_height) in zip(photos.names, photos.sizes, strict=True):
        # Equal shapes, up to rounding of the smaller one's sides.
        if abs(width * photo_height - height * photo_width) > max(width, height, photo_width, photo_height):
            raise UserError(
                f"{key} has {width}x{height} pixels, {name} {photo_width}x{photo_height}. Give a mask of the photo's "
                "shape."
            )
    values = np.stack([cropped(gray, photos, number, resolution) for number in range(len(photos.images))])
    if ((values > 64) & (values < 192)).mean() > MAX_GRAY:
        raise UserError(f"{key} is not black and white. Paint white what is to be filled, and black all else.")
    holes = torch.from_numpy(values >= 128)[:, None]
    for number, hole in enumerate(holes):
        if not hole.any():
            where = "face" if number in photos.aligned else "central square"
            raise UserError(f"{key} is black in the {where} of the photo. Paint white what is to be filled.")
    return holes, gray


def cropped(gray: Image.Image, photos: OwnPhotos, number: int, resolution: int) -> NDArray[np.uint8]:
    """Return the pixels (R, R) of a mask that belong to the crop of a photo."""
    if number in photos.aligned:
        scale = gray.width / photos.sizes[number][0]
        affine = scale * photos.aligned[number].square.affine(resolution)
        return np.asarray(warp(gray, affine, (resolution, resolution)))
    side = min(gray.size)
    left, top = (gray.width - side) // 2, (gray.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(gray.resize((resolution, resolution), Image.Resampling.NEAREST, box=box))


def shrunk(hole: Tensor, height: int, width: int) -> Tensor:
    """Downsample holes (n, 1, R, R) bool to (n, 1, height, width), true where any of its pixels is."""
    return F.adaptive_max_pool2d(hole.float(), (height, width)) > 0


def feathered(hole: Tensor, pixels: int) -> Tensor:
    """Return the weight (n, 1, R, R) of the filling: 0 outside the hole, rising to 1 over `pixels` inside its edge.

    Narrow holes get a sharper edge, so that the weight reaches 1 somewhere.
    """
    layer, depth = hole.float(), torch.zeros(hole.shape)
    for _ in range(pixels + 1):
        depth = depth + layer
        layer = -F.max_pool2d(-layer, 3, stride=1, padding=1)  # erode by a pixel, but not from the image border
    return depth / depth.amax((1, 2, 3), keepdim=True)
