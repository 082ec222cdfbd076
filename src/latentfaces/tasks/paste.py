"""Faces of the user's photos: found and cropped for the model, and pasted back."""

import itertools
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from latentfaces.data.align import find_faces
from latentfaces.data.crops import Square, border_weight, numbered, paste
from latentfaces.data.sources import Photos
from latentfaces.errors import UserError, warn


@dataclass(frozen=True)
class Alignment:
    """Choice of a face in each photo.

    Args:
        mode: "true", or "auto", which leaves photos as they are that have no face or are framed like FFHQ.
        face: number of the face, from 1, the largest.
        folder: gets a picture of the numbered faces of each photo that shows several.
    """

    mode: str
    face: int
    folder: Path

    def square(self, photo: Image.Image, name: str) -> Square | None:
        """Return the square of the chosen face, or None where the mode leaves the photo as it is.

        Raises:
            UserError: the photo has no such face, or the extra `align` is missing.
        """
        faces = find_faces(photo)
        if not faces and self.mode == "auto" and self.face == 1:
            warn(f"No face was found in {name}: its central square is used.")
            return None
        if not faces:
            raise UserError(f"No face was found in {name}. Give another photo, or use align=false.")
        if self.face > len(faces):
            raise UserError(f"task.face={self.face} must be between 1 and {len(faces)}, the number of faces in {name}.")
        if len(faces) > 1:
            path = unused(self.folder / f"faces_{PurePosixPath(name).stem}.png")
            numbered(photo, [face.square for face in faces]).save(path)
            print(f"{path}: {len(faces)} faces in {name}, task.face={self.face} is used")
        square = faces[self.face - 1].square
        is_framed = self.mode == "auto" and square.is_near(Square.central(*photo.size))
        return None if is_framed else square


def unused(wanted: Path) -> Path:
    """Return `wanted` or, where it exists, the same with a number: photos of several folders may have one name."""
    paths = (wanted.with_stem(f"{wanted.stem}_{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([wanted], paths) if not path.exists())


@dataclass(frozen=True)
class AlignedPhoto:
    """A photo of which a task sees the square of a face. It is read again when it is needed."""

    source: Photos
    name: str
    square: Square

    def with_face(self, face: Tensor, hole: Tensor | None = None, mask: Image.Image | None = None) -> Tensor:
        """Return the photo (3, H, W) uint8 with a face (3, R, R) uint8 in its square.

        Args:
            face: the new content of the square.
            hole: (R, R) bool, the part of it that is pasted; None for all of it, with a soft border.
            mask: in mode L, of any size: where it is black, pixels are exactly the photo's.
        """
        photo = self.source.photo(self.name)
        weight = border_weight(face.shape[-1]) if hole is None else hole.numpy().astype(np.float32)
        whole = paste(photo, to_pil_image(face), self.square, weight)
        if mask is not None:
            white = mask.resize(photo.size, Image.Resampling.NEAREST).point(lambda value: 255 * (value >= 128))
            whole = Image.composite(whole, photo, white)
        return pil_to_tensor(whole)
