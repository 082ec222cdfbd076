"""The user's photos, for tasks that take `image=`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentfaces.data.crops import crop
from latentfaces.data.images import HAS_HEIF
from latentfaces.data.pack import open_pack
from latentfaces.data.sources import HEIF, BadImageError, Photos
from latentfaces.errors import UserError, missing_extra, warn
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


def read_photos(
    image: str, resolution: int, num_photos: int, seed: int, alignment: Alignment | None = None, key: str = "image"
) -> OwnPhotos:
    """Read the user's photos. Warn of those that are cropped or enlarged.

    Args:
        image: an image, a folder or a .zip.
        resolution: height and width in pixels, R.
        num_photos: maximum number of photos.
        seed: selects photos where there are more.
        alignment: choice of a face in each photo.
        key: the key of `image` on the command line.

    Raises:
        UserError: the image is missing or damaged.
    """
    source = open_source(image, key)
    names, pixels, sizes, used, aligned = [], [], [], [], dict[int, AlignedPhoto]()
    try:
        for number, index in enumerate(choose(np.arange(len(source.names)), num_photos, seed).tolist()):
            name = source.names[index]
            photo = source.photo(name)
            square = alignment.square(photo, name) if alignment is not None else None
            if square is None:
                pixels.append(source.read(index, resolution).pixels)
                used.append(photo.size)
            else:
                pixels.append(np.asarray(crop(photo, square, resolution)).transpose(2, 0, 1))
                used.append((round(square.side),) * 2)
                aligned[number] = AlignedPhoto(source, name, square)
            names.append(name)
            sizes.append(photo.size)
    except BadImageError as error:
        raise UserError(f"{error}. Give another {key}=...") from error
    warn_of_shapes(names, used, resolution)
    return OwnPhotos(names, torch.from_numpy(np.stack(pixels)), sizes, aligned)


def held_out_photos(pack: str | None, num_photos: int, seed: int) -> OwnPhotos:
    """Read held-out images of the run's pack."""
    if pack is None:
        raise UserError("This run has no pack with held-out images. Give photos with image=FOLDER.")
    opened = open_pack(Path(pack))
    return OwnPhotos([], torch.from_numpy(opened.images[choose(opened.val_indices, num_photos, seed)]), [])


def open_source(image: str, key: str) -> Photos:
    """Open the source that `image` names, which has at least one image."""
    path = Path(image)
    if not image or not path.exists():  # Path("") is the current folder
        raise UserError(f"{key}={image} does not exist. Give an image, a folder or a .zip.")
    if path.suffix.lower() in HEIF and not HAS_HEIF:
        raise missing_extra(f"{key}={image}", "photos")
    if path.is_file() and path.suffix.lower() != ".zip" and not is_zipfile(path):
        return OnePhoto(path)
    try:
        source = Photos(path)
        assert source.names  # else it raises
    except UserError as error:
        raise UserError(str(error).replace("data.root", key)) from error
    return source


def choose(indices: np.ndarray, num_photos: int, seed: int) -> np.ndarray:
    """Return at most `num_photos` of the indices, in order, selected by the seed."""
    return np.sort(np.random.default_rng(seed).permutation(indices)[:num_photos])


def warn_of_shapes(names: Sequence[str], sizes: Sequence[Size], resolution: int) -> None:
    """Warn once of photos that are cropped, and once of those that are enlarged."""
    if oblong := [name for name, (width, height) in zip(names, sizes, strict=True) if width != height]:
        warn(f"{and_others(oblong)} is not square: its central square is used. Crop it yourself to keep another part.")
    if small := [name for name, size in zip(names, sizes, strict=True) if min(size) < resolution]:
        warn(f"{and_others(small)} was enlarged to {resolution} pixels. Give a larger photo for a sharper result.")


def and_others(names: Sequence[str]) -> str:
    """Return the first name, and the number of the others."""
    return names[0] + (f" (as {len(names) - 1} more)" if len(names) > 1 else "")
