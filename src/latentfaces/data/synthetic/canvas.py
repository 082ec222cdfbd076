"""Canvas and shapes of a drawn face.

Three coordinate systems are used, all with y pointing down: image (x, y) in [-1, 1]; head (u, v), whose origin lies
midway between the eyes and which follows position, scale and roll; and face (p, q), the head's surface, which slides
over the head when it turns.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentfaces.data.synthetic.traits import Color

Plane = NDArray[np.floating]  # float32 throughout; wider here because NumPy's stubs lose track of the width


@dataclass(frozen=True)
class Canvas:
    """An image in progress, (3, H, W) in [0, 1], and the coordinates of its pixels, each (H, W)."""

    rgb: Plane
    x: Plane
    y: Plane
    u: Plane
    v: Plane
    p: Plane
    q: Plane
    pixel: float  # width of a pixel in head units

    def crop(self, p: tuple[float, float], q: tuple[float, float]) -> "Canvas":
        """Return a view of the part of the canvas where the face coordinates lie in these ranges."""
        within = (self.p > p[0]) & (self.p < p[1]) & (self.q > q[0]) & (self.q < q[1])
        rows, columns = np.flatnonzero(within.any(1)), np.flatnonzero(within.any(0))
        if not rows.size:
            rows = columns = np.zeros(1, np.intp)
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        x, y, u, v, p_plane, q_plane = (plane[box] for plane in (self.x, self.y, self.u, self.v, self.p, self.q))
        return Canvas(self.rgb[:, *box], x, y, u, v, p_plane, q_plane, self.pixel)

    def cover(self, distance: Plane, softness: float = 0.0) -> Plane:
        """Return how much of each pixel lies inside a shape (distance < 0), with an edge a pixel or more wide."""
        covered: Plane = np.clip(0.5 - distance / (self.pixel + softness), 0, 1)
        return covered

    def paint(self, mask: Plane, color: Color | Plane) -> None:
        """Paint a color over the image where mask (H, W) is 1."""
        self.rgb[...] += mask * (planes(color) - self.rgb)

    def tint(self, mask: Plane, factor: Color) -> None:
        """Multiply the image by a factor where mask (H, W) is 1."""
        self.rgb[...] *= 1 - mask * (1 - planes(factor))


def planes(color: Color | Plane) -> Plane:
    """Return a color as an array that broadcasts against (3, H, W)."""
    return color if isinstance(color, np.ndarray) else np.array(color, np.float32).reshape(3, 1, 1)


def smooth(low: float, high: float, value: Plane) -> Plane:
    """Return the smooth step from 0 at `low` to 1 at `high`."""
    t: Plane = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def bump(a: Plane, b: Plane, center: tuple[float, float], radius: tuple[float, float]) -> Plane:
    """Return a Gaussian bump, 1 at its center."""
    height: Plane = np.exp(-(((a - center[0]) / radius[0]) ** 2) - ((b - center[1]) / radius[1]) ** 2)
    return height


def ellipse(a: Plane, b: Plane, center: tuple[float, float], radius: tuple[float, float]) -> Plane:
    """Return the approximate signed distance to an ellipse, negative inside."""
    from_center: Plane = np.hypot((a - center[0]) / radius[0], (b - center[1]) / radius[1])
    return (from_center - 1) * min(radius)


def squircle(a: Plane, b: Plane, squareness: Plane | float) -> Plane:
    """Return the distance from the origin, 1 on a circle whose corners are filled out by squareness in [0, 0.5]."""
    a, b = a * a, b * b
    radius: Plane = np.sqrt(a + b - squareness * np.minimum(a * b, 1))
    return radius
