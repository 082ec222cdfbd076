"""PNG files of images and of grids."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from latentfaces.data.images import to_uint8
from latentfaces.files import atomic_write
from latentfaces.marks import GENERATED, Source, png_info


def save_png(image: Tensor, path: Path, recipe: str = "", source: Source = GENERATED, compress_level: int = 6) -> None:
    """Write an image (3, H, W) uint8 as PNG, with its source type and the metadata that reproduce it.

    Level 1 of compression is fast, for large images.
    """
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    info = png_info(source, recipe)
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, "PNG", pnginfo=info, compress_level=compress_level)


def save_grid(images: Tensor, path: Path, columns: int = 8, recipe: str = "", source: Source = GENERATED) -> None:
    """Write images (n, 3, H, W), uint8 or float in [-1, 1], as one PNG with `columns` in a row."""
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    save_png(make_grid(pixels.cpu(), nrow=columns, padding=2, pad_value=255), path, recipe, source)
