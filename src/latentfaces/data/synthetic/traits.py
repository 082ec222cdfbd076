"""Random parameters of a face."""

from colorsys import hsv_to_rgb as hsv
from dataclasses import dataclass, replace

import numpy as np

Color = tuple[float, float, float]

SKIN_RAMP: tuple[Color, ...] = (
    (0.98, 0.85, 0.77), (0.94, 0.77, 0.66), (0.87, 0.67, 0.53), (0.74, 0.53, 0.39), (0.57, 0.38, 0.27),
    (0.40, 0.26, 0.19),
)  # fmt: skip
HAIR_RAMP: tuple[Color, ...] = (
    (0.90, 0.77, 0.52), (0.72, 0.54, 0.32), (0.47, 0.31, 0.19), (0.28, 0.18, 0.12), (0.12, 0.09, 0.08),
)  # fmt: skip
IRIS_COLORS: tuple[Color, ...] = ((0.33, 0.53, 0.70), (0.40, 0.55, 0.38), (0.50, 0.55, 0.58), (0.53, 0.40, 0.20))


@dataclass(frozen=True)
class HairStyle:
    """Shape of a haircut in head units; `weight` is how common it is at masculine = 0 and 1."""

    weight: tuple[float, float]
    end: float  # v where the hair behind the head ends
    side: float  # v where the hair in front of the face ends
    opening: float  # half width of the hair's opening, as a fraction of the head's
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
    """Random parameters of a face: lengths in head units, colors in [0, 1]."""

    center: tuple[float, float]  # midpoint between the eyes, in the image
    scale: float
    roll: float  # radians
    yaw: float  # sideways shift of the nearest point of the face
    pitch: float
    light: tuple[float, float, float]  # unit vector towards the light; x right, y down, z to the viewer
    light_color: Color
    ambient: float
    masculine: float  # 0 to 1
    age: float  # 0 to 1
    skin: Color
    blush: float
    width: float
    chin: float  # v of the chin
    taper: float  # how much the jaw narrows
    style: HairStyle
    hair: Color
    parting: float
    sweep: float  # slant of the hairline
    wave: float
    eye_spacing: float  # half the distance between the eyes
    eye_size: float  # half width of an eye
    eye_open: float  # height of the opening over the eye's half width
    eye_tilt: float
    iris: Color
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
    lip_tint: Color
    smile: float
    mouth_open: float
    beard: float  # opacity, 0 for none
    mustache: float
    glasses: Color | None
    glasses_round: float
    hat: Color | None
    cloth: Color
    neckline: float
    backdrop: tuple[Color, Color]
    backdrop_angle: float
    blobs: tuple[tuple[float, float, float, float, Color], ...]  # x, y, radius, softness, color
    phases: tuple[float, ...]  # of the hair's strands


def scaled(color: Color, factor: float) -> Color:
    """Return a color times a factor, within [0, 1]."""
    red, green, blue = (min(max(channel * factor, 0.0), 1.0) for channel in color)
    return red, green, blue


def ramp(colors: tuple[Color, ...], t: float) -> Color:
    """Return the color at t in [0, 1] along evenly spaced colors."""
    at = np.linspace(0, 1, len(colors))
    red, green, blue = (float(np.interp(t, at, channel)) for channel in zip(*colors, strict=True))
    return red, green, blue


def sample_face(rng: np.random.Generator) -> Face:
    """Sample the parameters of a face, with correlated traits."""

    def normal(mean: float, std: float) -> float:
        return mean + std * min(max(rng.normal(), -2.2), 2.2)

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    masculine = float(rng.beta(0.6, 0.6))
    age = float(rng.beta(1.3, 2.2))
    tone = float(rng.beta(0.9, 1.1))
    red, green, blue = ramp(SKIN_RAMP, tone)
    skin = scaled((red, green * normal(1, 0.02), blue * normal(1, 0.04)), normal(1, 0.03))

    darkness = float(np.clip(rng.beta(1.3, 1.3) * 0.95 + 0.95 * tone - 0.12, 0, 1))
    hair = ramp(HAIR_RAMP, darkness)
    if chance(0.18 * (1 - tone) ** 2):
        hair = scaled((0.66, 0.30, 0.13), normal(0.95, 0.15))
    gray = float(np.clip((age - 0.55) * 2.2 + normal(0, 0.25), 0, 1)) if age > 0.5 else 0.0
    hair = ramp((hair, (0.74, 0.73, 0.72)), gray)
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

    iris = ramp(((0.42, 0.26, 0.14), (0.20, 0.12, 0.08)), float(rng.random()))
    if chance(0.75 * (1 - tone) ** 1.2):
        iris = scaled(IRIS_COLORS[int(rng.integers(len(IRIS_COLORS)))], normal(1, 0.12))

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

    def backdrop() -> Color:
        hue = (backdrop_hue + normal(0, 0.06)) % 1
        return hsv(hue, float(rng.beta(1.5, 2.5)) * 0.7, float(np.clip(backdrop_value + normal(0, 0.12), 0.05, 1)))

    blobs = tuple(
        (float(rng.uniform(-1.1, 1.1)), float(rng.uniform(-1.1, 0.6)), float(rng.uniform(0.12, 0.5)),
         float(rng.uniform(0.05, 0.5)), backdrop())
        for _ in range(int(rng.integers(0, 8)))
    )  # fmt: skip

    return Face(
        center=(normal(0, 0.03), normal(-0.11, 0.025)),
        scale=normal(1.05, 0.04),
        roll=normal(0, 0.05),
        yaw=normal(0, 0.065),
        pitch=normal(0, 0.02),
        light=(light_x, light_y, light_z),
        light_color=(1 + warmth, 1.0, 1 - warmth),
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
        mouth_width=normal(0.175, 0.015) + 0.05 * smile,
        lips=(normal(0.036, 0.006) + 0.012 * tone + 0.006 * feminine, normal(0.050, 0.007) + 0.014 * tone),
        lip_tint=(0.90 - 0.06 * rouge, 0.70 - 0.24 * rouge, 0.70 - 0.18 * rouge),
        smile=smile,
        mouth_open=mouth_open,
        beard=float(rng.uniform(0.25, 0.95)) if bearded else 0.0,
        mustache=float(rng.uniform(0.4, 0.95)) if (bearded and chance(0.85)) or chance(0.05 * masculine) else 0.0,
        glasses=scaled(hsv(float(rng.random()), 0.5, 0.35), float(rng.uniform(0.1, 1.2))) if chance(0.25) else None,
        glasses_round=float(rng.random()),
        hat=hsv(float(rng.random()), 0.4, float(rng.uniform(0.2, 0.8))) if chance(0.12) else None,
        cloth=hsv(float(rng.random()), float(rng.beta(1.5, 2)) * 0.85, float(rng.uniform(0.12, 0.95))),
        neckline=float(rng.uniform(0.0, 0.25)),
        backdrop=(backdrop(), backdrop()),
        backdrop_angle=float(rng.uniform(0, 2 * np.pi)),
        blobs=blobs,
        phases=tuple(float(phase) for phase in rng.uniform(0, 2 * np.pi, 6)),
    )
