"""A person's photos, for every task that takes `image=`."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentfaces.data.images import open_image, orientation
from latentfaces.data.pack import open_pack
from latentfaces.data.sources import SUFFIXES, BadImageError, Photos
from latentfaces.errors import UserError, and_others, warn

Size = tuple[int, int]
"""Width and height, in pixels."""


class OnePhoto(Photos):
    """A single picture as a source, without a look at the other files beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self.path = path

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {self.path.name: self.path.stat().st_size}


@dataclass(frozen=True)
class OwnPhotos:
    """Photos as the model takes them, and what they were before."""

    names: list[str]
    images: Tensor
    """(n, 3, R, R) uint8: centred squares."""
    sizes: list[Size]
    """Of the upright files."""


def photos_for(resolution: int, image: str | None, pack: str | None, num_photos: int, seed: int) -> Tensor:
    """Read the user's photos or, without any, held-out photos of the run's pack.

    Args:
        resolution: height and width in pixels, R.
        image: a picture, a folder or a .zip.
        pack: the folder of the run's pack.
        num_photos: maximum number of photos.
        seed: chooses photos where there are more.

    Returns:
        (n, 3, R, R) uint8.

    Raises:
        UserError: there is neither `image` nor a pack, or a photo is damaged.
    """
    if num_photos < 1:
        raise UserError(f"task.num_photos={num_photos} must be at least 1")
    if image is not None:
        return own_photos(resolution, image, num_photos, seed).images
    if pack is None:
        raise UserError("This run has no pack with held-out photos. Give photos with image=....")
    opened = open_pack(Path(pack))
    return torch.from_numpy(opened.images[np.sort(choose(opened.val_indices, num_photos, seed))])


def own_photos(resolution: int, image: str, num_photos: int, seed: int, key: str = "image") -> OwnPhotos:
    """Read the user's photos. Warn on stderr of those that are cropped or enlarged.

    Args:
        resolution, image, num_photos, seed: see `photos_for`.
        key: the key under which `image` was typed.

    Raises:
        UserError: there is no such picture, or it is damaged.
    """
    photos = read_photos(image, resolution, num_photos, seed, key)
    warn_of_shapes(photos.names, photos.sizes, resolution)
    return photos


def one_photo(resolution: int, image: str, seed: int, key: str = "image") -> Tensor:
    """Read one picture, (1, 3, R, R) uint8, for a task that takes no folder."""
    if not Path(image).expanduser().is_file() or not Photos.is_picture(Path(image).name):
        raise UserError(f"{key}={image} must be one picture here ({', '.join(SUFFIXES)})")
    return own_photos(resolution, image, 1, seed, key).images


def read_photos(image: str, resolution: int, num_photos: int, seed: int, key: str = "image") -> OwnPhotos:
    """Read a picture, a folder or a .zip; arguments and errors as for `own_photos`."""
    source = open_source(image, key)
    wanted = np.sort(choose(np.arange(len(source.names)), num_photos, seed)).tolist()
    names = [source.names[index] for index in wanted]
    try:
        pixels = np.stack([source.read(index, resolution).pixels for index in wanted])
    except BadImageError as error:
        raise UserError(f"{error}: give {key}= another picture") from error
    return OwnPhotos(names, torch.from_numpy(pixels), [upright_size(source.file_bytes(name)) for name in names])


def open_source(image: str, key: str) -> Photos:
    """Open what `image` names. It must hold at least one image."""
    path = Path(image).expanduser()
    if not path.exists():
        raise UserError(f"{key}={image} does not exist")
    if path.is_file() and Photos.is_picture(path.name):
        return OnePhoto(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise UserError(f"{key}={image} is neither a picture ({', '.join(SUFFIXES)}) nor a folder or .zip: convert it")
    try:
        source = Photos(path)
        assert source.names  # else it says so itself
    except UserError as error:
        raise UserError(str(error).replace("data.root", key)) from error
    return source


def choose(indices: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` of them, by the seed."""
    return np.random.default_rng(seed).permutation(indices)[:count]


def upright_size(data: bytes) -> Size:
    """Width and height of an encoded picture, by its header alone."""
    with open_image(io.BytesIO(data)) as image:
        # The size that Pillow tells of a TIFF is the upright one.
        lies = image.format != "TIFF" and orientation(image) >= 5
        return (image.height, image.width) if lies else (image.width, image.height)


def warn_of_shapes(names: Sequence[str], sizes: Sequence[Size], resolution: int) -> None:
    """Say which photos are cropped, and which are enlarged: one sentence each, however many they are."""
    oblong = [index for index, (width, height) in enumerate(sizes) if width != height]
    if oblong:
        width, height = sizes[oblong[0]]
        where = "at the left and right" if width > height else "at the top and bottom"
        warn(
            f"{and_others(names, oblong)} is not square ({width}x{height}), and {abs(width - height)} pixels are cut "
            f"away {where}: crop it yourself to keep another part"
        )
    small = [index for index, size in enumerate(sizes) if min(size) < resolution]
    if small:
        width, height = sizes[small[0]]
        warn(
            f"{and_others(names, small)} has {width}x{height} pixels, fewer than the model's {resolution}, and was "
            "enlarged: give a larger photo for a sharper result"
        )
