"""Labels of drawn faces, from their parameters."""

import math
from collections.abc import Sequence

import numpy as np

from latentfaces.data.synthetic.traits import HAIR_RAMP, HAIR_STYLES, SKIN_RAMP, Color, Face, sample_face

STYLES = {"cropped": "short", "fringe": "bob"}
"""Haircuts that look alike at 64 pixels have one name."""
HAIR_COLORS = (
    *zip(HAIR_RAMP, ("blond", "blond", "brown", "black", "black"), strict=True),
    ((0.66, 0.30, 0.13), "red"), ((0.74, 0.73, 0.72), "gray"),
)  # fmt: skip
SKIN_COLORS = (*zip(SKIN_RAMP, ("light", "light", "medium", "medium", "dark", "dark"), strict=True),)
CLEARER = 2
"""A color is this many times nearer to its name than to others; between two names it has no label."""
NO_SMILE, SMILE = 0.35, 0.65
"""Curves of the mouth in between are left without a label."""
LEAST_BEARD, LEAST_GAP = 0.3, 0.15
"""Opacity of a beard and opening of a mouth that are visible at 64 pixels."""


def known_labels(seed: int) -> dict[str, str]:
    """Return the labels of the face of a seed as texts; "" where they cannot be seen."""
    face = sample_face(np.random.default_rng(seed))
    return {
        "glasses": str(int(face.glasses is not None)),
        "hat": str(int(face.hat is not None)),
        "beard": str(int(face.beard > LEAST_BEARD)),
        "smile": "" if NO_SMILE < face.smile < SMILE else str(int(face.smile >= SMILE)),
        "open_mouth": str(int(face.mouth_open > LEAST_GAP)),
        "hair": "" if face.hat is not None else hair_style(face),
        "hair_color": "" if face.hat is not None or hair_style(face) == "bald" else named(face.hair, HAIR_COLORS),
        "skin": named(face.skin, SKIN_COLORS),
        "age": f"{face.age:.3f}",
    }


def hair_style(face: Face) -> str:
    """Return the name of a haircut, which its weight identifies."""
    name = next(name for name, style in HAIR_STYLES.items() if style.weight == face.style.weight)
    return STYLES.get(name, name)


def named(color: Color, names: Sequence[tuple[Color, str]]) -> str:
    """Return the name of the nearest color of `names`, or "" if another name is about as near."""
    distances = sorted((math.dist(color, known), name) for known, name in names)
    nearest, name = distances[0]
    other = next(distance for distance, other_name in distances if other_name != name)
    return name if other >= CLEARER * nearest else ""
