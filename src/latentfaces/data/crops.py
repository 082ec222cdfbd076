"""Turned squares of a photo: crop them, and paste faces back into them."""

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.floating]

BLUR, FADE = 0.02, 0.05
"""Width of the blur outside the photo, and the distance over which it sets in, as fractions of the side."""
FEATHER = 0.125
"""Width of the border over which a pasted face fades in, as a fraction of the side."""
LINE = 0.005
"""Width of the lines of `numbered`, as a fraction of the photo's longer side."""


@dataclass(frozen=True)
class Square:
    """Turned square in a photo. Its first pixel covers [0, 1) in both directions.

    Args:
        center: (x, y) in pixels.
        right: from the center to the middle of the right edge, (x, y) in pixels.
    """

    center: tuple[float, float]
    right: tuple[float, float]

    @classmethod
    def of_landmarks(cls, landmarks: Floats) -> Self:
        """Return the square of FFHQ for landmarks (5, 2): eyes, nose, corners of the mouth, from left to right.

        Karras et al. 2018 (Progressive Growing of GANs), appendix C, with half of their side.
        """
        left_eye, right_eye, _, *corners = landmarks
        between_eyes, eyes = right_eye - left_eye, (left_eye + right_eye) / 2
        to_mouth = sum(corners) / 2 - eyes
        right = between_eyes + np.array([to_mouth[1], -to_mouth[0]])  # both point to the right
        right *= max(2.0 * math.hypot(*between_eyes), 1.8 * math.hypot(*to_mouth)) / math.hypot(*right)
        x, y = eyes + 0.1 * to_mouth
        return cls((float(x), float(y)), (float(right[0]), float(right[1])))

    @classmethod
    def central(cls, width: int, height: int) -> Self:
        """Return the largest central square of a photo."""
        return cls((width / 2, height / 2), (min(width, height) / 2, 0.0))

    @property
    def side(self) -> float:
        """Length of the side in pixels."""
        return 2 * math.hypot(*self.right)

    @property
    def corners(self) -> Floats:
        """(4, 2): top left, top right, bottom right, bottom left."""
        return points_in(self.affine(1), np.array([[0, 0], [1, 0], [1, 1], [0, 1]]))

    def affine(self, size: int) -> Floats:
        """Return the map (2, 3) from pixels of the crop, which has `size` on each side, to pixels of the photo."""
        right, down = np.array(self.right), np.array([-self.right[1], self.right[0]])
        linear = np.stack([right, down], axis=1) * 2 / size
        return np.column_stack([linear, np.array(self.center) - right - down])

    def is_near(self, other: "Square") -> bool:
        """Return whether both frame a face alike: within 10 % of the side, a factor of 1.25 and 10 degrees."""
        turn = math.degrees(cmath.phase(complex(*self.right) / complex(*other.right)))
        shift = math.dist(self.center, other.center) / other.side
        return shift < 0.1 and 0.8 < self.side / other.side < 1.25 and abs(turn) < 10


def points_in(affine: Floats, points: Floats) -> Floats:
    """Apply a map (2, 3) to points (n, 2)."""
    return points @ affine[:, :2].T + affine[:, 2]


def inverse(affine: Floats) -> Floats:
    """Return the inverse of a map (2, 3)."""
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def warp(image: Image.Image, affine: Floats, size: tuple[int, int]) -> Image.Image:
    """Resample an image of any mode without aliasing; `affine` maps pixels of the result to those of the image.

    Bicubic, with the mean of several samples per pixel where the result is smaller. Outside the image it is 0.
    """
    samples = max(1, math.ceil(math.sqrt(abs(np.linalg.det(affine[:, :2]))) - 1e-3))
    fine = np.column_stack([affine[:, :2] / samples, affine[:, 2]])
    # Bicubic weights are partly negative, which masks may not get.
    resample = Image.Resampling.BICUBIC if image.mode == "RGB" else Image.Resampling.BILINEAR
    wide = image.transform(
        (size[0] * samples, size[1] * samples), Image.Transform.AFFINE, tuple(fine.ravel()), resample
    )
    return wide.reduce(samples) if samples > 1 else wide


def crop(photo: Image.Image, square: Square, size: int) -> Image.Image:
    """Return a square of an RGB photo, (size, size). Outside the photo it is mirrored and blurred, as in FFHQ."""
    # The box around the square, with a margin for the filter of `warp`. It may extend beyond the photo.
    shrink = max(1, int(square.side / size / 2))  # leaves two to four samples per pixel
    low = np.floor(square.corners.min(0)).astype(int) - 2 * shrink
    high = np.ceil(square.corners.max(0)).astype(int) + 2 * shrink
    # Its part inside the photo, reduced, and mirrored at the edges of the photo.
    start, end = low.clip(0), np.minimum(high, photo.size)
    region = photo.crop((*start, *end))
    region = region.reduce(shrink) if shrink > 1 else region
    before, after = ((start - low) // shrink).tolist(), (-((end - high) // shrink)).tolist()
    if any(before + after):
        borders = ((before[1], after[1]), (before[0], after[0]), (0, 0))
        region = Image.fromarray(np.pad(np.asarray(region), borders, "symmetric"))
    # The map from the crop to the photo, in pixels of that region.
    affine = square.affine(size)
    local = np.column_stack([affine[:, :2], affine[:, 2] - start]) / shrink
    local[:, 2] += before
    image = warp(region, local, (size, size))
    outside = distance_outside(affine, size, photo.size) / square.side
    if not outside.any():
        return image
    blurred = image.filter(ImageFilter.GaussianBlur(BLUR * size))
    return Image.composite(blurred, image, Image.fromarray(((outside / FADE).clip(0, 1) * 255).astype(np.uint8)))


def distance_outside(affine: Floats, size: int, photo_size: tuple[int, int]) -> Floats:
    """Return how far each pixel of a crop is outside the photo (size, size), in pixels of the photo."""
    columns, rows = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    points = points_in(affine, np.stack([columns, rows], axis=-1).reshape(-1, 2))
    return np.maximum(-points, points - photo_size).max(1).clip(0).reshape(size, size)


def border_weight(size: int) -> Floats:
    """Return the weight (size, size) of a pasted face: 0 at the border, 1 inside, with a smooth step between them."""
    distance = np.minimum(np.arange(size), np.arange(size)[::-1])
    step = (distance / max(1.0, FEATHER * size)).clip(0, 1)
    step = step**2 * (3 - 2 * step)
    return np.outer(step, step)


def paste(photo: Image.Image, face: Image.Image, square: Square, weight: Floats) -> Image.Image:
    """Return the RGB photo with a face (R, R) in its square. Pixels without weight are exactly the photo's.

    Args:
        photo: the photo.
        face: the new content of the square.
        square: the square.
        weight: (R, R) in [0, 1]. The mean color of the face is shifted to that of the photo where it is below 1.
    """
    size = face.width
    rest, pixels = 1 - weight[..., None], np.asarray(face, np.float32)
    shift = (rest * (np.asarray(crop(photo, square, size)) - pixels)).sum((0, 1)) / max(float(rest.sum()), 1.0)
    matched = Image.fromarray((pixels + shift).round().clip(0, 255).astype(np.uint8))
    left, top = np.floor(square.corners.min(0)).clip(0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(square.corners.max(0)), photo.size).astype(int).tolist()
    affine, extent = inverse(square.affine(size)), (right - left, bottom - top)
    affine[:, 2] = points_in(affine, np.array([left, top]))
    mask = warp(Image.fromarray((255 * weight).round().astype(np.uint8)), affine, extent)
    result = photo.copy()
    result.paste(warp(matched, affine, extent), (left, top), mask)
    return result


def numbered(photo: Image.Image, squares: Sequence[Square]) -> Image.Image:
    """Return the photo with numbered squares."""
    shown, longer = photo.copy(), max(photo.size)
    draw, width = ImageDraw.Draw(shown), max(1, round(LINE * longer))
    for number, square in enumerate(squares, 1):
        corners = [tuple(corner) for corner in square.corners.tolist()]
        draw.line([*corners, corners[0]], "yellow", width)
        draw.text(corners[0], str(number), "yellow", font_size=10 * width, stroke_width=width, stroke_fill="black")
    return shown
