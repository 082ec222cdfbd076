"""Portraits of people who do not exist, drawn from a seed: a data set that needs no download.

`sample_face` draws the parameters of a face, `draw_face` paints them back to front: background, hair behind the
head, clothes, neck, ears, skin, features, hair in front. Three coordinate systems are used, all with y pointing down:
picture (x, y) in [-1, 1]; head (u, v), whose origin lies midway between the eyes and which follows position, scale
and roll; and face (p, q), the head's surface, which slides over the head when it turns.
"""

import colorsys
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.floating]  # float32 throughout; wider here because NumPy's stubs lose track of the width
Colour = tuple[float, float, float]

SUPERSAMPLING = 2
FACE_CENTRE = 0.05  # v of the widest point of the head
SKIN_RAMP: tuple[Colour, ...] = (
    (0.98, 0.85, 0.77), (0.94, 0.77, 0.66), (0.87, 0.67, 0.53), (0.74, 0.53, 0.39), (0.57, 0.38, 0.27),
    (0.40, 0.26, 0.19),
)  # fmt: skip
HAIR_RAMP: tuple[Colour, ...] = (
    (0.90, 0.77, 0.52), (0.72, 0.54, 0.32), (0.47, 0.31, 0.19), (0.28, 0.18, 0.12), (0.12, 0.09, 0.08),
)  # fmt: skip
IRIS_COLOURS: tuple[Colour, ...] = ((0.33, 0.53, 0.70), (0.40, 0.55, 0.38), (0.50, 0.55, 0.58), (0.53, 0.40, 0.20))


@dataclass(frozen=True)
class HairStyle:
    """Shape of a haircut in head units; `weight` is how common it is at masculine = 0 and 1."""

    weight: tuple[float, float]
    end: float  # v where the hair behind the head ends
    side: float  # v where the hair in front of the face ends
    opening: float  # half width of the hair's opening, as a share of the head's
    hairline: float  # v of the top of that opening
    volume: float  # how far the hair stands off the skull
    square: float = 0.1  # how boxy the opening is, 0 to 0.5
    curl: bool = False
    bun: bool = False


HAIR_STYLES = {
    "bald": HairStyle((0.0, 0.10), 0.0, -0.9, 1.1, -0.9, 0.0),
    "cropped": HairStyle((0.04, 0.28), 0.10, 0.02, 0.97, -0.47, 0.02),
    "short": HairStyle((0.10, 0.34), 0.20, 0.08, 0.94, -0.42, 0.09),
    "curly": HairStyle((0.14, 0.12), 0.35, 0.10, 0.94, -0.40, 0.16, curl=True),
    "fringe": HairStyle((0.14, 0.06), 0.72, 0.85, 0.86, -0.19, 0.10, square=0.5),
    "bob": HairStyle((0.16, 0.01), 0.62, 0.75, 0.86, -0.43, 0.11),
    "long": HairStyle((0.28, 0.06), 2.00, 2.00, 0.86, -0.45, 0.10),
    "bun": HairStyle((0.14, 0.03), 0.12, 0.00, 0.95, -0.45, 0.03, bun=True),
}


@dataclass(frozen=True)
class Face:
    """Everything that is drawn at random about one portrait; lengths are in head units, colours in [0, 1]."""

    centre: tuple[float, float]  # midpoint between the eyes, in the picture
    scale: float
    roll: float  # radians
    yaw: float  # sideways shift of the nearest point of the face
    pitch: float
    light: tuple[float, float, float]  # unit vector towards the light; x right, y down, z to the viewer
    light_colour: Colour
    ambient: float
    masculine: float  # 0 to 1
    age: float  # 0 to 1
    skin: Colour
    blush: float
    width: float
    chin: float  # v of the chin
    taper: float  # how much the jaw narrows
    style: HairStyle
    hair: Colour
    parting: float
    sweep: float  # slant of the hairline
    wave: float
    eye_spacing: float  # half the distance between the eyes
    eye_size: float  # half width of an eye
    eye_open: float  # height of the opening over the eye's half width
    eye_tilt: float
    iris: Colour
    gaze: tuple[float, float]
    lashes: float
    brow_height: float
    brow_thickness: float
    brow_arch: float
    brow_tilt: float
    nose_width: float
    nose_length: float
    mouth_width: float
    lips: tuple[float, float]  # heights of the upper and the lower lip
    lip_tint: Colour
    smile: float
    mouth_open: float
    beard: float  # opacity, 0 for none
    moustache: float
    glasses: Colour | None
    glasses_round: float
    hat: Colour | None
    cloth: Colour
    neckline: float
    backdrop: tuple[Colour, Colour]
    backdrop_angle: float
    blobs: tuple[tuple[float, float, float, float, Colour], ...]  # x, y, radius, softness, colour
    phases: tuple[float, ...]  # of the hair's strands


@dataclass(frozen=True)
class Canvas:
    """A picture in progress, (3, H, W) in [0, 1], and the coordinates of its pixels, each (H, W)."""

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

    def paint(self, mask: Plane, colour: Colour | Plane) -> None:
        """Lay a colour over the picture where mask (H, W) is 1."""
        self.rgb[...] += mask * (_planes(colour) - self.rgb)

    def tint(self, mask: Plane, factor: Colour) -> None:
        """Multiply the picture by a factor where mask (H, W) is 1."""
        self.rgb[...] *= 1 - mask * (1 - _planes(factor))


def _planes(colour: Colour | Plane) -> Plane:
    """Return a colour as an array that broadcasts against (3, H, W)."""
    return colour if isinstance(colour, np.ndarray) else np.array(colour, np.float32).reshape(3, 1, 1)


def _smooth(low: float, high: float, value: Plane) -> Plane:
    """Return the smooth step from 0 at `low` to 1 at `high`."""
    t: Plane = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _bump(a: Plane, b: Plane, centre: tuple[float, float], radius: tuple[float, float]) -> Plane:
    """Return a Gaussian bump, 1 at its centre."""
    height: Plane = np.exp(-(((a - centre[0]) / radius[0]) ** 2) - ((b - centre[1]) / radius[1]) ** 2)
    return height


def _ellipse(a: Plane, b: Plane, centre: tuple[float, float], radius: tuple[float, float]) -> Plane:
    """Return about the signed distance to an ellipse, negative inside."""
    from_centre: Plane = np.hypot((a - centre[0]) / radius[0], (b - centre[1]) / radius[1])
    return (from_centre - 1) * min(radius)


def _squircle(a: Plane, b: Plane, squareness: Plane | float) -> Plane:
    """Return the distance from the origin, 1 on a circle whose corners are filled out by squareness in [0, 0.5]."""
    a, b = a * a, b * b
    radius: Plane = np.sqrt(a + b - squareness * np.minimum(a * b, 1))
    return radius


def _scaled(colour: Colour, factor: float) -> Colour:
    """Return a colour times a factor, within [0, 1]."""
    red, green, blue = (min(max(channel * factor, 0.0), 1.0) for channel in colour)
    return red, green, blue


def _ramp(colours: tuple[Colour, ...], t: float) -> Colour:
    """Return the colour at t in [0, 1] along evenly spaced colours."""
    at = np.linspace(0, 1, len(colours))
    red, green, blue = (float(np.interp(t, at, channel)) for channel in zip(*colours, strict=True))
    return red, green, blue


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return the RGB colour of a hue, saturation and value, each in [0, 1]."""
    return colorsys.hsv_to_rgb(hue, saturation, value)


def sample_face(rng: np.random.Generator) -> Face:
    """Draw the parameters of a face; traits that go together in people are correlated."""

    def normal(mean: float, deviation: float) -> float:
        return mean + deviation * float(np.clip(rng.normal(), -2.2, 2.2))

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    masculine = float(rng.beta(0.6, 0.6))
    age = float(rng.beta(1.3, 2.2))
    tone = float(rng.beta(0.9, 1.1))
    red, green, blue = _ramp(SKIN_RAMP, tone)
    skin = _scaled((red, green * normal(1, 0.02), blue * normal(1, 0.04)), normal(1, 0.03))

    darkness = float(np.clip(rng.beta(1.3, 1.3) * 0.95 + 0.95 * tone - 0.12, 0, 1))
    hair = _ramp(HAIR_RAMP, darkness)
    if chance(0.18 * (1 - tone) ** 2):
        hair = _scaled((0.66, 0.30, 0.13), normal(0.95, 0.15))
    grey = float(np.clip((age - 0.55) * 2.2 + normal(0, 0.25), 0, 1)) if age > 0.5 else 0.0
    hair = _ramp((hair, (0.74, 0.73, 0.72)), grey)
    weights = np.array([(1 - masculine) * s.weight[0] + masculine * s.weight[1] for s in HAIR_STYLES.values()])
    style = list(HAIR_STYLES.values())[int(rng.choice(len(weights), p=weights / weights.sum()))]
    length = normal(0, 0.08) if style.side > 0.3 else 0.0
    style = replace(
        style,
        end=style.end + length,
        side=style.side + length,
        opening=style.opening * normal(1, 0.02),
        hairline=style.hairline + normal(0, 0.02),
        volume=style.volume * normal(1, 0.25),
    )

    iris = _ramp(((0.42, 0.26, 0.14), (0.20, 0.12, 0.08)), float(rng.random()))
    if chance(0.75 * (1 - tone) ** 1.2):
        iris = _scaled(IRIS_COLOURS[int(rng.integers(len(IRIS_COLOURS)))], normal(1, 0.12))

    azimuth, height = normal(0, 0.65), normal(0.45, 0.2)
    light = np.array([np.sin(azimuth), -height, np.cos(azimuth)])
    light_x, light_y, light_z = (float(c) for c in light / np.linalg.norm(light))
    warmth = normal(0, 0.035)

    smile = normal(0.50, 0.38)
    mouth_open = abs(normal(0, 0.5)) if chance(0.55 if smile > 0.4 else 0.12) else 0.0
    bearded = chance(0.34 * masculine)
    feminine = 1 - masculine
    rouge = max(0.0, normal(0.5, 0.35)) * feminine
    backdrop_hue, backdrop_value = float(rng.random()), float(rng.uniform(0.15, 0.95))

    def backdrop() -> Colour:
        hue = (backdrop_hue + normal(0, 0.06)) % 1
        return _hsv(hue, float(rng.beta(1.5, 2.5)) * 0.7, float(np.clip(backdrop_value + normal(0, 0.12), 0.05, 1)))

    blobs = tuple(
        (float(rng.uniform(-1.1, 1.1)), float(rng.uniform(-1.1, 0.6)), float(rng.uniform(0.12, 0.5)),
         float(rng.uniform(0.05, 0.5)), backdrop())
        for _ in range(int(rng.integers(0, 8)))
    )  # fmt: skip

    return Face(
        centre=(normal(0, 0.03), normal(-0.11, 0.025)),
        scale=normal(1.05, 0.04),
        roll=normal(0, 0.05),
        yaw=normal(0, 0.065),
        pitch=normal(0, 0.02),
        light=(light_x, light_y, light_z),
        light_colour=(1 + warmth, 1.0, 1 - warmth),
        ambient=normal(0.56, 0.07),
        masculine=masculine,
        age=age,
        skin=skin,
        blush=max(0.0, normal(0.35, 0.2)) + 0.2 * rouge,
        width=normal(0.54, 0.02) + 0.015 * masculine,
        chin=normal(0.80, 0.025) + 0.03 * masculine,
        taper=normal(0.14, 0.06) - 0.16 * masculine,
        style=style,
        hair=hair,
        parting=normal(0, 0.18),
        sweep=normal(0, 0.12),
        wave=abs(normal(0, 0.5)),
        eye_spacing=normal(0.237, 0.009),
        eye_size=normal(0.122, 0.006),
        eye_open=normal(0.80, 0.09) - 0.05 * smile,
        eye_tilt=normal(-0.06, 0.07),
        iris=iris,
        gaze=(normal(0, 0.09), normal(0, 0.04)),
        lashes=normal(0.6, 0.15) + 0.5 * feminine,
        brow_height=normal(0.155, 0.014) + 0.012 * feminine,
        brow_thickness=normal(0.021, 0.003) + 0.010 * masculine,
        brow_arch=normal(0.035, 0.012) + 0.01 * feminine,
        brow_tilt=normal(0.013, 0.010),
        nose_width=normal(0.085, 0.010) + 0.008 * masculine + 0.012 * tone,
        nose_length=normal(0.29, 0.018),
        mouth_width=normal(0.185, 0.015) + 0.03 * smile,
        lips=(normal(0.036, 0.006) + 0.012 * tone + 0.006 * feminine, normal(0.050, 0.007) + 0.014 * tone),
        lip_tint=(0.90 - 0.06 * rouge, 0.70 - 0.24 * rouge, 0.70 - 0.18 * rouge),
        smile=smile,
        mouth_open=mouth_open,
        beard=float(rng.uniform(0.25, 0.95)) if bearded else 0.0,
        moustache=float(rng.uniform(0.4, 0.95)) if (bearded and chance(0.85)) or chance(0.05 * masculine) else 0.0,
        glasses=_scaled(_hsv(float(rng.random()), 0.5, 0.35), float(rng.uniform(0.1, 1.2))) if chance(0.18) else None,
        glasses_round=float(rng.random()),
        hat=_hsv(float(rng.random()), 0.4, float(rng.uniform(0.2, 0.8))) if chance(0.05) else None,
        cloth=_hsv(float(rng.random()), float(rng.beta(1.5, 2)) * 0.85, float(rng.uniform(0.12, 0.95))),
        neckline=float(rng.uniform(0.0, 0.25)),
        backdrop=(backdrop(), backdrop()),
        backdrop_angle=float(rng.uniform(0, 2 * np.pi)),
        blobs=blobs,
        phases=tuple(float(phase) for phase in rng.uniform(0, 2 * np.pi, 6)),
    )


def draw_face(seed: int, size: int = 64) -> NDArray[np.uint8]:
    """Return the portrait that belongs to a seed, (size, size, 3) RGB; the same face at every size."""
    face = sample_face(np.random.default_rng(seed))
    canvas = _canvas(face, size * SUPERSAMPLING)
    _backdrop(face, canvas)
    hair = _hair(face, canvas) if face.style.volume else None
    if hair:
        _hair_behind(face, canvas, *hair)
    for draw in (_clothes, _ears, _skin, _eyes, _brows, _nose, _mouth, _beard):
        draw(face, canvas)
    _glasses(face, canvas)
    if hair:
        _hair_front(face, canvas, *hair)
    _hat(face, canvas)
    rgb = canvas.rgb * _planes(face.light_colour)
    rgb = rgb.reshape(3, size, SUPERSAMPLING, size, SUPERSAMPLING).mean((2, 4))
    return np.ascontiguousarray(np.clip(rgb * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _canvas(face: Face, side: int) -> Canvas:
    """Return an empty canvas of side x side pixels with the coordinates of a face."""
    axis = ((np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    cos, sin = float(np.cos(face.roll)) / face.scale, float(np.sin(face.roll)) / face.scale
    u = (x - face.centre[0]) * cos + (y - face.centre[1]) * sin
    v = (y - face.centre[1]) * cos - (x - face.centre[0]) * sin
    depth = np.maximum(1 - _outline(face, u, v) ** 2, 0)
    p, q = u - face.yaw * depth, v - face.pitch * depth
    return Canvas(np.zeros((3, side, side), np.float32), x, y, u, v, p, q, 2 / side / face.scale)


def _outline(face: Face, u: Plane, v: Plane) -> Plane:
    """Return the distance from the middle of the head, 1 on its outline."""
    width = face.width * (1 - face.taper * _smooth(0.1, face.chin, v))
    height = np.where(v < FACE_CENTRE, np.float32(-0.74), np.float32(face.chin - FACE_CENTRE))
    return _squircle(u / width, (v - FACE_CENTRE) / height, np.where(v < FACE_CENTRE, np.float32(0.35), 0))


def _lit(face: Face, normal_x: Plane, normal_y: Plane) -> Plane:
    """Return the brightness of a surface, about 0.5 to 1.1, from the x and y slopes of its normal."""
    x, y, z = face.light
    facing = (normal_x * x + normal_y * y + z) / np.sqrt(1 + normal_x**2 + normal_y**2)
    return face.ambient + (1.12 - face.ambient) * np.maximum(facing, 0)


def _backdrop(face: Face, canvas: Canvas) -> None:
    """Paint a gradient between two colours, with soft discs of light."""
    along = canvas.x * float(np.cos(face.backdrop_angle)) + canvas.y * float(np.sin(face.backdrop_angle))
    canvas.paint(np.ones_like(along), face.backdrop[0])
    canvas.paint(_smooth(-1.2, 1.2, along), face.backdrop[1])
    for x, y, radius, softness, colour in face.blobs:
        canvas.paint(0.6 * canvas.cover(_ellipse(canvas.x, canvas.y, (x, y), (radius, radius)), softness), colour)


def _hair(face: Face, canvas: Canvas) -> tuple[Plane, Plane]:
    """Return the signed distance to the outer shape of the hair (H, W), and its colour everywhere (3, H, W)."""
    style, u, v, phases = face.style, canvas.u, canvas.v, face.phases
    bottom = 0.25 + style.volume
    curve = 0.6 * face.wave * np.sin(7 * v + phases[0] + 0.6 * u)
    width = face.width + 0.85 * style.volume + (0.05 * curve + 0.10) * _smooth(0.0, 1.0, v) * (style.end > 0.5)
    height = np.minimum(v, 0) / (0.71 + style.volume) + np.maximum(v - max(style.end - bottom, 0.0), 0) / bottom
    across = u / width
    radius = _squircle(across, height, 0.25)
    if style.curl:
        strands = np.sin(17 * u + 2 * np.sin(13 * v + phases[1])) * np.sin(17 * v + 2 * np.sin(14 * u + phases[2]))
        radius = radius + 0.035 * np.sin(13 * u + phases[1]) * np.sin(13 * v + phases[2])
    else:
        fan = (u - face.parting) / (np.abs(v + 0.95) + 0.35) + 0.12 * curve * _smooth(-0.2, 0.8, v)
        strands = 0.45 * np.sin(35 * fan + phases[3]) + 0.3 * np.sin(61 * fan + phases[4] + 2 * v)
        strands += 0.3 * np.sin(17 * fan + phases[5] - v)
    shade = _lit(face, 0.9 * across, 0.9 * height) * (0.85 + 0.13 * strands)
    sheen = np.exp(-(((height + 0.62 - 0.25 * across**2) / 0.15) ** 2)) * (0.55 + 0.45 * strands)
    return (radius - 1) * face.width, _planes(face.hair) * shade + (0.04 + 0.14 * _planes(face.hair)) * sheen


def _hair_behind(face: Face, canvas: Canvas, distance: Plane, colour: Plane) -> None:
    """Paint the hair behind the head, and a bun on top."""
    if face.style.bun:
        bun = _ellipse(canvas.u, canvas.v, (face.parting * 0.4, -0.76), (0.22, 0.17))
        canvas.paint(canvas.cover(bun), colour * (0.75 - 0.25 * bun / 0.17))
    canvas.paint(canvas.cover(distance), colour * 0.7)


def _clothes(face: Face, canvas: Canvas) -> None:
    """Paint the neck with the chin's shadow on it, then the shoulders."""
    canvas = canvas.crop((-9, 9), (0.25, 9))
    u, v = canvas.u, canvas.v
    half = 0.25 + 0.08 * face.masculine
    shoulder = 0.86 + 0.30 * _smooth(half, 1.1, np.abs(u)) + 0.12 * np.maximum(np.abs(u) - half, 0) ** 2
    shade = _lit(face, 1.1 * np.clip(u / half, -1, 1), np.full_like(u, 0.1))
    shadow = canvas.cover((_outline(face, u + 0.1 * face.light[0], v - 0.12) - 1) * 0.6, 0.22)
    mask = canvas.cover(np.minimum(np.abs(u) - half, shoulder + 0.02 - v))
    canvas.paint(mask, _planes(face.skin) * shade)
    canvas.tint(mask * shadow, (0.66, 0.56, 0.54))
    collar = (0.80 + face.neckline) + 0.14 * (1 - (u / half) ** 2)
    cloth = canvas.cover(np.maximum(shoulder, collar) - v)
    folds = 1 + 0.07 * np.sin(9 * u + 5 * v + face.phases[1]) * np.sin(4 * u + face.phases[2])
    canvas.paint(cloth, _planes(face.cloth) * _lit(face, 0.8 * u, 0.9 * (shoulder - v) + 0.2) * folds)
    canvas.tint(cloth * shadow, (0.8, 0.8, 0.8))


def _ears(face: Face, canvas: Canvas) -> None:
    """Paint the ears, unless hair covers them; they move against the face when the head turns."""
    if face.style.side > 0.3:
        return
    for side in (-1, 1):
        centre = (side * face.width - 0.25 * face.yaw, 0.12)
        part = canvas.crop((centre[0] - 0.15, centre[0] + 0.15), (-0.1, 0.35))
        mask = part.cover(_ellipse(part.u - 0.15 * side * (0.12 - part.v), part.v, centre, (0.08, 0.15)))
        part.paint(mask, _planes(face.skin) * _lit(face, (part.u - centre[0]) * 6 + side * 0.3, part.v * 2 - 0.24))
        part.tint(mask * _bump(part.u, part.v, (centre[0] + 0.015 * side, 0.11), (0.035, 0.085)), (0.72, 0.55, 0.52))


def _skin(face: Face, canvas: Canvas) -> None:
    """Paint the head, shaded by the slopes of a relief of the face."""
    canvas = canvas.crop((-face.width - 0.1, face.width + 0.1), (-0.85, face.chin + 0.1))
    p, q, a = canvas.p, canvas.q, np.abs(canvas.p)
    outline = _outline(face, canvas.u, canvas.v)
    spacing, tip, mouth = face.eye_spacing, face.nose_length, _mouth_height(face)
    relief = (
        0.42 * np.sqrt(np.maximum(1.08 - outline**2, 0.02))
        + 0.045 * _bump(a, q, (0, tip * 0.45), (0.65 * face.nose_width, tip * 0.65))
        + 0.045 * _bump(a, q, (0, tip - 0.02), (0.80 * face.nose_width, 0.075))
        + 0.020 * _bump(a, q, (0.95 * face.nose_width, tip), (0.045, 0.045))
        - 0.035 * _bump(a, q, (spacing - 0.02, -0.03), (0.15, 0.09))
        + 0.020 * _bump(a, q, (spacing, -0.17), (0.20, 0.06)) * (0.5 + face.masculine)
        + (0.025 + 0.02 * face.smile) * _bump(a, q, (0.29, 0.22), (0.14, 0.13))
        + 0.030 * _bump(a, q, (0, mouth), (0.20, 0.12))
        - 0.020 * _bump(a, q, (0, mouth + 0.12), (0.12, 0.035))
        + 0.030 * _bump(a, q, (0, face.chin - 0.08), (0.13, 0.08))
    )
    slope_y, slope_x = np.gradient(relief, canvas.pixel)
    dark = np.log(_lit(face, -slope_x, -slope_y))
    # Light that enters skin leaves it redder, so green and blue fall off faster in the shade.
    shade = np.exp(dark * np.array([0.85, 1.05, 1.12], np.float32).reshape(3, 1, 1))
    mask = canvas.cover((outline - 1) * 0.6)
    canvas.paint(mask, _planes(face.skin) * shade)

    blush = _bump(a, q, (0.30, 0.24), (0.13, 0.11)) + 0.6 * _bump(a, q, (0, tip), (0.09, 0.07))
    canvas.tint(mask * blush * face.blush, (1.0, 0.76, 0.74))
    crease = a - 0.115 - 0.38 * (q - tip) - 0.03 * face.smile
    folds = np.exp(-((crease / 0.020) ** 2)) * _smooth(tip - 0.03, tip + 0.05, q) * _smooth(mouth, mouth - 0.08, q)
    bags = _bump(a, q - 0.10 + 1.2 * (a - spacing) ** 2, (spacing, 0), (0.10, 0.018))
    canvas.tint(mask * folds * (0.05 + 0.5 * face.age + 0.2 * max(face.smile, 0.0)), (0.80, 0.70, 0.66))
    canvas.tint(mask * bags * (0.1 + 0.6 * face.age), (0.80, 0.70, 0.68))
    lines = np.exp(-((np.sin(38 * q + 0.6 * np.cos(5 * p)) / 0.4) ** 2)) * _bump(p, q, (0, -0.31), (0.2, 0.08))
    canvas.tint(mask * lines * max(face.age - 0.35, 0.0), (0.85, 0.78, 0.75))
    if face.style.volume:
        distance = _opening(face, canvas)
        near = np.exp(np.minimum(distance, 0) / 0.07) * _smooth(face.style.side + 0.1, face.style.side - 0.1, q)
        canvas.tint(mask * near * 0.45, (0.62, 0.50, 0.46))


def _eyes(face: Face, canvas: Canvas) -> None:
    """Paint both eyes: white, iris, pupil, highlight, lids and lashes."""
    size, light_x = face.eye_size, face.light[0]
    for side in (-1, 1):
        middle = side * face.eye_spacing
        part = canvas.crop((middle - 1.7 * size, middle + 1.7 * size), (-1.3 * size, 1.3 * size))
        across = side * (part.p - middle) / size  # -1 at the inner corner, 1 at the outer
        down = part.q / size - face.eye_tilt * across
        arc = 1 - across**2
        upper, lower = -0.58 * face.eye_open * arc, 0.42 * face.eye_open * arc
        over, under = (upper - down) * size, (down - lower) * size  # distances to the lids, negative inside the eye
        part.tint(_bump(across, down, (0, -0.55), (1.0, 0.45)) * 0.5, (0.82, 0.72, 0.70))
        opening = part.cover(np.maximum(over, under))
        white = 0.88 - 0.30 * np.exp(np.minimum(over, 0) / 0.022) - 0.10 * np.abs(across) ** 3
        part.paint(opening, _planes((1.0, 0.975, 0.96)) * white * (0.75 + 0.25 * face.ambient / 0.52))

        x, y = across - side * face.gaze[0] - side * 0.5 * face.yaw, down - face.gaze[1] + 0.04
        radius = np.hypot(x, y)
        ball = part.cover((radius - 0.47) * size) * opening
        glow = 0.75 + 0.7 * np.clip(y, -0.4, 0.6) - 0.5 * _smooth(0.32, 0.47, radius)
        part.paint(ball, _planes(face.iris) * np.maximum(glow + 0.25, 0.15))
        part.paint(part.cover((radius - 0.22) * size) * opening, (0.03, 0.025, 0.03))
        part.tint(ball * np.exp(np.minimum(over, 0) / 0.018), (0.45, 0.42, 0.42))
        spark = np.hypot(x - 0.17 * side * (1 if light_x > 0 else -1), y + 0.17) - 0.13
        part.paint(part.cover(spark * size) * opening, (1.0, 1.0, 1.0))

        inside = _smooth(1.12, 0.95, np.abs(across))
        lash = (0.008 + 0.008 * face.lashes) * (0.65 + 0.45 * across) + 0.003
        part.paint(part.cover(np.abs(over - 0.3 * lash) - lash) * inside * 0.92, _scaled(face.hair, 0.25))
        part.tint(part.cover(np.abs(under - 0.004) - 0.005) * inside * 0.6, (0.62, 0.48, 0.46))
        crease = np.abs(down - 1.15 * upper + 0.24 + 0.06 * across) * size - 0.006
        part.tint(part.cover(crease, 0.01) * _smooth(1.1, 0.6, np.abs(across)) * 0.6, (0.66, 0.52, 0.49))


def _brows(face: Face, canvas: Canvas) -> None:
    """Paint the brows, thick at the nose and thin at the temple."""
    for side in (-1, 1):
        middle = side * (face.eye_spacing + 0.01)
        part = canvas.crop((middle - 0.22, middle + 0.22), (-0.34, -0.04))
        across = side * (part.p - middle) / 0.155
        height = -face.brow_height - face.brow_arch * (1 - (across - 0.15) ** 2) + face.brow_tilt * across + 0.012
        thickness = face.brow_thickness * (1 - 0.65 * _smooth(-0.2, 1.1, across))
        edge = np.maximum(np.abs(part.q - height) - thickness, (np.abs(across) - 1) * 0.1)
        hairs = 0.85 + 0.12 * np.sin(60 * (part.p * side - 0.6 * part.q))
        part.paint(part.cover(edge, 0.014) * hairs * 0.9, _scaled(face.hair, 0.75))


def _nose(face: Face, canvas: Canvas) -> None:
    """Darken the nostrils and the shadow under the nose, and lighten its tip."""
    width, tip = face.nose_width, face.nose_length
    part = canvas.crop((-0.25, 0.25), (-0.1, 0.5))
    # The tip stands nearer than the face around it, so it slides further when the head turns.
    p = part.p - 0.35 * face.yaw
    a, q = np.abs(p), part.q
    part.tint(0.40 * _bump(p, q, (-0.5 * width * face.light[0], tip + 0.045), (width * 1.15, 0.028)), (0.6, 0.44, 0.4))
    part.tint(0.85 * _bump(a, q + 0.3 * a, (0.45 * width, tip + 0.032), (0.030, 0.014)), (0.32, 0.20, 0.19))
    wing = np.abs(np.hypot((a - width) / 0.042, (q - tip) / 0.045) - 1) * 0.04
    outer = _smooth(width - 0.01, width + 0.035, a)
    part.tint(0.35 * np.exp(-((wing / 0.014) ** 2)) * outer * _smooth(tip - 0.05, tip, q), (0.62, 0.48, 0.46))
    shine = _bump(p, q, (0.2 * width * face.light[0], tip - 0.035), (0.028, 0.028))
    part.paint(0.30 * shine, (1.0, 0.95, 0.90))


def _mouth_height(face: Face) -> float:
    """Return the q of the line between the lips."""
    return face.nose_length + 0.205


def _mouth(face: Face, canvas: Canvas) -> None:
    """Paint the lips, and between them teeth where the mouth is open."""
    half, middle = face.mouth_width, _mouth_height(face)
    part = canvas.crop((-1.5 * half, 1.5 * half), (middle - 0.16, middle + 0.26))
    across, q = part.p / half, part.q
    arc = np.maximum(1 - across**2, 0)
    line = middle - 0.045 * face.smile * (across**2 - 0.35)
    gap = 0.075 * face.mouth_open * arc
    inner_top, inner_bottom = line - 0.25 * gap, line + 0.75 * gap
    bow = 1 - 0.28 * np.exp(-((across / 0.16) ** 2))
    top = inner_top - face.lips[0] * arc**0.75 * bow
    bottom = inner_bottom + face.lips[1] * arc**0.7
    lips = part.cover(np.maximum(top - q, q - bottom), 0.006) * part.cover((np.abs(across) - 0.98) * half, 0.01)
    red, green, blue = face.lip_tint
    part.tint(lips, face.lip_tint)
    part.tint(lips * part.cover(q - line) * 0.5, (0.80, 0.72, 0.72))
    part.tint(0.5 * _bump(across, q, (0, float(bottom.max()) + 0.022), (0.6, 0.018)), (0.70, 0.58, 0.55))
    gloss = _bump(across, q - inner_bottom, (0.15 * face.light[0], 0.45 * face.lips[1]), (0.45, 0.3 * face.lips[1]))
    part.paint(0.22 * gloss * lips, (1.0, 0.9, 0.88))

    mouth = part.cover(np.maximum(inner_top - q, q - inner_bottom)) * _smooth(0.002, 0.012, gap)
    part.paint(mouth, (0.25 * red, 0.12 * green, 0.13 * blue))
    depth = np.maximum(q - inner_top, 0) / np.maximum(gap, 1e-3)
    teeth = mouth * _smooth(0.72, 0.55, depth) * _smooth(0.97, 0.80, np.abs(across))
    part.paint(teeth, _planes((0.96, 0.94, 0.90)) * (0.98 - 0.25 * across**2 - 0.12 * np.exp(-depth / 0.15)))
    seam = np.exp(-(((q - line) / 0.009) ** 2)) * _smooth(1.08, 0.92, np.abs(across)) * (1 - mouth)
    part.tint(seam * (0.85 - 0.5 * min(face.mouth_open, 1.0)), (0.40, 0.26, 0.26))
    corner = _bump(np.abs(part.p), q, (half, float(middle - 0.03 * face.smile)), (0.022, 0.022))
    part.tint(0.5 * corner, (0.62, 0.48, 0.46))


def _beard(face: Face, canvas: Canvas) -> None:
    """Paint a beard along the jaw and a moustache above the mouth, around the lips."""
    if not face.beard and not face.moustache:
        return
    part = canvas.crop((-face.width - 0.1, face.width + 0.1), (0.0, face.chin + 0.1))
    p, q, a, middle = part.p, part.q, np.abs(part.p), _mouth_height(face)
    hairs = 0.9 + 0.1 * np.sin(50 * p + face.phases[1]) * np.sin(31 * q + 40 * a)
    shade = _lit(face, p / face.width, 0.8 * (q - 0.5)) * hairs
    colour = _planes(_scaled(face.hair, 0.72)) * shade

    edge = middle + 0.13 + 0.045 * max(face.mouth_open, 0.0) - 1.15 * np.maximum(a - 0.13, 0)
    jaw = part.cover(np.maximum(edge - q, 0.08 - q), 0.15) * part.cover((_outline(face, part.u, part.v) - 1.02) * 0.6)
    above = middle - 0.075 + 1.6 * a**2 - 0.02 * face.smile * (a > 0.1)
    lip = part.cover(np.maximum(np.abs(q - above) - 0.034, a - 1.05 * face.mouth_width), 0.03)
    part.paint(np.maximum(jaw * face.beard, lip * face.moustache), colour)


def _opening(face: Face, canvas: Canvas) -> Plane:
    """Return the signed distance to the gap in the hair that shows the face, negative inside."""
    style, u = face.style, canvas.u - 0.6 * face.yaw
    half = face.width * style.opening * (1 + 0.4 * _smooth(0.6, 1.3, canvas.v))
    slanted = canvas.v + face.sweep * (u - face.parting)
    rise = np.minimum(slanted - 0.05, 0) / (0.05 - style.hairline)
    ragged = 0.5 * np.sin(29 * u + face.phases[3]) + 0.5 * np.sin(47 * u + face.phases[4] + 9 * canvas.v)
    rim: Plane = 0.012 * ragged * np.minimum(-rise, 1)
    return (_squircle(u / half, rise, style.square) - 1) * half - rim


def _hair_front(face: Face, canvas: Canvas, distance: Plane, colour: Plane) -> None:
    """Paint the hair in front of the head: over the forehead, the temples and, if long, the shoulders."""
    tips = 0.03 * np.sin(21 * canvas.u + face.phases[5])
    mask = canvas.cover(distance) * canvas.cover(-_opening(face, canvas), 0.02)
    canvas.paint(mask * canvas.cover(canvas.v - face.style.side - tips, 0.06), colour)


def _hat(face: Face, canvas: Canvas) -> None:
    """Paint a knitted hat over the hair."""
    if face.hat is None:
        return
    u, v = canvas.u, canvas.v
    volume = 0.7 * face.style.volume
    shape = _ellipse(u, v, (0, -0.2), (face.width + 0.06 + volume, 0.59 + volume))
    brim = v + 0.28 - 0.07 * (u / face.width) ** 2
    knit = 0.92 + 0.08 * np.sin(40 * u / (1.2 + 0.3 * v))
    shade = _lit(face, u / 0.6, v + 0.4) * knit
    canvas.paint(canvas.cover(np.maximum(shape, brim)), _planes(face.hat) * shade)
    canvas.tint(canvas.cover(np.maximum(shape, np.abs(brim + 0.13) - 0.008), 0.015), (0.6, 0.6, 0.6))
    canvas.tint(0.4 * canvas.cover(np.maximum(shape, np.abs(brim - 0.03) - 0.03), 0.03), (0.5, 0.42, 0.4))


def _glasses(face: Face, canvas: Canvas) -> None:
    """Paint the frame of a pair of glasses and a faint reflection in its lenses."""
    if face.glasses is None:
        return
    part = canvas.crop((-face.width - 0.05, face.width + 0.05), (-0.25, 0.28))
    a, q = np.abs(part.p), part.q - 0.025
    corner = 0.06 + 0.08 * face.glasses_round
    wide, high = 0.185 - corner - 0.02 * face.glasses_round, 0.145 - corner
    x, y = np.maximum(np.abs(a - face.eye_spacing - 0.005) - wide, 0), np.maximum(np.abs(q) - high, 0)
    lens = np.hypot(x, y) - corner
    bridge = np.maximum(np.abs(q + 0.045 - 0.8 * a**2) - 0.010, np.maximum(a - face.eye_spacing, -lens))
    temple = np.maximum(np.abs(q + 0.06) - 0.012, np.maximum(face.eye_spacing + 0.1 - a, -lens))
    part.paint(0.10 * part.cover(lens) * _smooth(-0.2, 0.2, part.p + q), (1.0, 1.0, 1.0))
    part.tint(0.5 * part.cover(np.abs(lens) - 0.012, 0.04), (0.75, 0.68, 0.66))
    frame = np.minimum(np.minimum(np.abs(lens) - 0.011, bridge), temple)
    part.paint(part.cover(frame) * part.cover((_outline(face, part.u, part.v) - 1.03) * 0.6), face.glasses)
