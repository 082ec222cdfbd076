"""A person's mask: which pixels are to be painted anew."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from latentfaces.data.images import open_image, to_rgb, turned_upright
from latentfaces.errors import UserError, warn
from latentfaces.tasks.photos import OwnPhotos


def read_mask(mask: str, photos: OwnPhotos, resolution: int) -> Tensor:
    """White, or transparent, where a picture is to be painted anew: (1, 1, R, R) bool, cropped like the photos.

    Raises:
        UserError: it cannot be read, is of another shape than a photo, or leaves nothing to paint.
    """
    key = f"task.mask={mask}"
    try:
        with open_image(Path(mask).expanduser()) as image:
            grey = to_rgb(turned_upright(image)).convert("L")
    except FileNotFoundError:
        raise UserError(f"{key} does not exist") from None
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise UserError(f"{key} cannot be read ({error}): give a black and white PNG") from error
    width, height = grey.size
    for name, (photo_width, photo_height) in zip(photos.names, photos.sizes, strict=True):
        # The same shape but for the rounding of the smaller one's sides.
        if abs(width * photo_height - height * photo_width) > max(width, height, photo_width, photo_height):
            raise UserError(
                f"{key} has {width}x{height} pixels and {name} {photo_width}x{photo_height}, which is another shape: "
                "draw the mask over the whole photo"
            )
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    pixels = grey.resize((resolution, resolution), Image.Resampling.NEAREST, box=box)
    hole = torch.from_numpy(np.asarray(pixels) >= 128)[None, None]
    if not hole.any():
        raise UserError(f"{key} is black all over the photo's centred square: paint white what is to be replaced")
    if hole.all():
        warn(f"{key} is white all over, so that nothing of the photo is kept: paint black what is to stay")
    return hole


def shrunk(hole: Tensor, height: int, width: int) -> Tensor:
    """A hole (1, 1, R, R) bool at a lower resolution: (1, 1, height, width), true where any of its pixels is."""
    return F.adaptive_max_pool2d(hole.float(), (height, width)) > 0


def feathered(hole: Tensor, pixels: int) -> Tensor:
    """Weight of the new picture, (1, 1, R, R) in [0, 1]: 0 outside the hole, 1 in it but for some pixels at its edge.

    A hole too narrow for that has a sharper edge, so that the new picture shows wholly somewhere.
    """
    layer, depth = hole.float(), torch.zeros(hole.shape)
    for _ in range(pixels + 1):
        depth = depth + layer
        layer = -F.max_pool2d(-layer, 3, stride=1, padding=1)  # one pixel less on all sides, but for the picture's own
    return depth / depth.max()
