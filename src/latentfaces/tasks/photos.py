"""The user's photos, for tasks that take `image=`."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentfaces.data.crops import crop
from latentfaces.data.images import open_image, orientation
from latentfaces.data.pack import open_pack
from latentfaces.data.sources import SUFFIXES, BadImageError, Photos
from latentfaces.errors import UserError, and_others, warn
from latentfaces.tasks.output import PictureFolder
from latentfaces.tasks.paste import AlignedPhoto, Alignment

Size = tuple[int, int]
"""Width and height, in pixels."""


class OnePhoto(Photos):
    """Source of a single image, which does not list the other files of the folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent)
        self.path = path

    @cached_property
    def listing(self) -> tuple[dict[str, int], dict[str, list[str]]]:
        return {self.path.name: self.path.stat().st_size}, {}


@dataclass(frozen=True)
class OwnPhotos:
    """Photos as inputs of the model, with their names and original sizes, which are unknown for those of a pack."""

    names: list[str]
    images: Tensor
    """(n, 3, R, R) uint8: central squares or aligned faces."""
    sizes: list[Size]
    """Sizes of the upright files."""
    aligned: dict[int, AlignedPhoto] = field(default_factory=dict)
    """Those that show an aligned face, by their number."""

    def save(
        self,
        faces: Tensor,
        which: list[int],
        pictures: PictureFolder,
        holes: Tensor | None = None,
        mask: Image.Image | None = None,
    ) -> None:
        """Write faces (b, 3, R, R) uint8, and aligned photos with the face in them as whole_00000.png, ...

        Args:
            faces: the results.
            which: the number of the photo of each face.
            pictures: the folder.
            holes: (b, 1, R, R) bool, the parts that are pasted; None for all of the crop.
            mask: see `AlignedPhoto.with_face`.
        """
        first = pictures.count
        pictures.add(faces)
        for i, photo in enumerate(which):
            if photo in self.aligned:
                whole = self.aligned[photo].with_face(faces[i], None if holes is None else holes[i, 0], mask)
                number = first + i
                pictures.write(whole, f"whole_{number:05d}.png", compress_level=1, index=number)


def photos_for(
    resolution: int,
    image: str | None,
    pack: str | None,
    num_photos: int,
    seed: int,
    alignment: Alignment | None = None,
) -> OwnPhotos:
    """Read the user's photos or, without any, held-out photos of the run's pack.

    Args:
        resolution: height and width in pixels, R.
        image: an image, a folder or a .zip.
        pack: the folder of the run's pack.
        num_photos: maximum number of photos.
        seed: selects photos where there are more.
        alignment: choice of a face in each of the user's photos.

    Raises:
        UserError: there is neither `image` nor a pack, or a photo is damaged.
    """
    if image is not None:
        return read_photos(image, resolution, num_photos, seed, alignment=alignment)
    if pack is None:
        raise UserError("This run has no pack with held-out images. Give photos with image=....")
    opened = open_pack(Path(pack))
    return OwnPhotos([], torch.from_numpy(opened.images[choose(opened.val_indices, num_photos, seed)]), [])


def read_photos(
    image: str,
    resolution: int,
    num_photos: int,
    seed: int,
    key: str = "image",
    alignment: Alignment | None = None,
) -> OwnPhotos:
    """Read the user's photos. Warn of those that are cropped or enlarged.

    Args:
        image, resolution, num_photos, seed, alignment: see `photos_for`.
        key: the key of `image` on the command line.

    Raises:
        UserError: the image is missing or damaged.
    """
    source = open_source(image, key)
    wanted = choose(np.arange(len(source.names)), num_photos, seed).tolist()
    names = [source.names[index] for index in wanted]
    aligned, pixels = dict[int, AlignedPhoto](), []
    try:
        for number, index in enumerate(wanted):
            pixels.append(source.read(index, resolution).pixels)
            if alignment is None or alignment.mode == "false":
                continue
            photo = source.photo(source.names[index])
            if (square := alignment.square(photo, source.names[index])) is not None:
                aligned[number] = AlignedPhoto(source, source.names[index], square)
                pixels[-1] = np.asarray(crop(photo, square, resolution)).transpose(2, 0, 1)
    except BadImageError as error:
        raise UserError(f"{error}. Give another {key}=...") from error
    sizes = [upright_size(source.file_bytes(name)) for name in names]
    used = [(round(aligned[i].square.side),) * 2 if i in aligned else size for i, size in enumerate(sizes)]
    warn_of_shapes([f"the face in {name}" * (i in aligned) or name for i, name in enumerate(names)], used, resolution)
    return OwnPhotos(names, torch.from_numpy(np.stack(pixels)), sizes, aligned)


def one_photo(resolution: int, image: str, seed: int, key: str = "image", alignment: Alignment | None = None) -> Tensor:
    """Read one image, (1, 3, R, R) uint8, for a task that takes no folder."""
    if Path(image).exists() and not (Path(image).is_file() and Photos.is_picture(Path(image).name)):
        raise UserError(f"{key}={image} must be one image ({', '.join(SUFFIXES)}). Give another file.")
    return read_photos(image, resolution, 1, seed, key, alignment).images


def open_source(image: str, key: str) -> Photos:
    """Open the source that `image` names, which has at least one image."""
    path = Path(image)
    if not path.exists():
        raise UserError(f"{key}={image} does not exist. Give an image, a folder or a .zip.")
    if path.is_file() and Photos.is_picture(path.name):
        return OnePhoto(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise UserError(f"{key}={image} is neither an image ({', '.join(SUFFIXES)}) nor a folder or .zip. Convert it.")
    try:
        source = Photos(path)
        assert source.names  # else it raises
    except UserError as error:
        raise UserError(str(error).replace("data.root", key)) from error
    return source


def choose(indices: np.ndarray, num_photos: int, seed: int) -> np.ndarray:
    """Return at most `num_photos` of the indices, in order, selected by the seed."""
    if num_photos < 1:
        raise UserError(f"task.num_photos={num_photos} must be at least 1")
    return np.sort(np.random.default_rng(seed).permutation(indices)[:num_photos])


def upright_size(data: bytes) -> Size:
    """Return width and height of an encoded image, from its header alone."""
    with open_image(io.BytesIO(data)) as image:
        rotated = image.format != "TIFF" and orientation(image) >= 5  # Pillow's size of a TIFF is already upright
        return (image.height, image.width) if rotated else (image.width, image.height)


def warn_of_shapes(names: Sequence[str], sizes: Sequence[Size], resolution: int) -> None:
    """Warn once of photos that are cropped, and once of those that are enlarged."""
    oblong = [index for index, (width, height) in enumerate(sizes) if width != height]
    if oblong:
        width, height = sizes[oblong[0]]
        where = "at the left and right" if width > height else "at the top and bottom"
        warn(
            f"{and_others(names, oblong)} is not square ({width}x{height}): {abs(width - height)} pixels are cropped "
            f"{where}. Crop it yourself to keep another part."
        )
    small = [index for index, size in enumerate(sizes) if min(size) < resolution]
    if small:
        width, height = sizes[small[0]]
        warn(
            f"{and_others(names, small)} has {width}x{height} pixels and was enlarged to the model's {resolution}. "
            "Give a larger photo for a sharper result."
        )
