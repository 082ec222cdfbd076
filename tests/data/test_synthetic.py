"""Drawn faces: known answers, one face at every size, variety, smooth edges and aligned eyes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from latentfaces.data.synthetic import draw_face, sample_face
from latentfaces.data.synthetic.drawing import _canvas, _outline
from latentfaces.data.synthetic.traits import HAIR_STYLES

BALD_SEED = 5
LUMINANCE = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def faces() -> NDArray[np.uint8]:
    """Return 64 images, (64, 64, 64, 3)."""
    return np.stack([draw_face(seed) for seed in range(64)])


def eye_index(seed: int, side: int, size: int, down: float = 0.0) -> tuple[int, int]:
    """Return the row and column of a pupil, or of the point `down` face units below it."""
    face = sample_face(np.random.default_rng(seed))
    canvas = _canvas(face, size)
    gaze = face.gaze[0] + 0.5 * face.yaw
    p = side * face.eye_spacing + face.eye_size * gaze
    q = face.eye_size * (face.gaze[1] - 0.04 + side * face.eye_tilt * gaze) + down
    row, column = np.unravel_index(np.argmin((canvas.p - p) ** 2 + (canvas.q - q) ** 2), canvas.p.shape)
    return int(row), int(column)


@pytest.mark.parametrize("size", [16, 64, 96])
def test_image_is_rgb_bytes_of_the_requested_size(size: int) -> None:
    image = draw_face(0, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    assert image.max() - image.min() > 100


def test_seed_decides_every_byte() -> None:
    np.random.seed(1)  # the global state must not matter
    first = draw_face(3)
    draw_face(4)
    np.random.seed(2)
    assert first.tobytes() == draw_face(3).tobytes()


def test_seeds_give_different_images(faces: NDArray[np.uint8]) -> None:
    assert len({image.tobytes() for image in faces}) == len(faces)
    distances = np.abs(faces[:-1].astype(float) - faces[1:]).mean((1, 2, 3))
    assert distances.min() > 10


@pytest.mark.parametrize("seed", range(6))
def test_same_face_at_every_size(seed: int, faces: NDArray[np.uint8]) -> None:
    reduced = draw_face(seed, 256).reshape(64, 4, 64, 4, 3).mean((1, 3))
    difference = np.abs(reduced - faces[seed]).mean()
    assert difference < 1.2
    assert difference < 0.1 * np.abs(reduced - faces[seed + 1]).mean()


def test_faces_vary_in_the_center_and_in_brightness(faces: NDArray[np.uint8]) -> None:
    center = faces[:, 16:48, 16:48].astype(float)
    assert center.std(0).mean() > 35
    luminance = (center @ LUMINANCE).mean((1, 2))
    assert luminance.std() > 20
    assert luminance.max() - luminance.min() > 80


def test_traits_have_their_frequencies() -> None:
    people = [sample_face(np.random.default_rng(seed)) for seed in range(600)]
    assert 0.15 < np.mean([face.glasses is not None for face in people]) < 0.30
    assert 0.08 < np.mean([face.hat is not None for face in people]) < 0.16
    assert 0.10 < np.mean([face.beard > 0 or face.mustache > 0 for face in people]) < 0.26
    assert {face.style.weight for face in people} == {style.weight for style in HAIR_STYLES.values()}
    brightness = [sum(face.skin) for face in people]
    assert np.corrcoef(brightness, [sum(face.hair) for face in people])[0, 1] > 0.2


def test_edges_are_smooth() -> None:
    # A bald, pale head before a dark background: each row crosses the head's outline, where a hard edge would jump.
    face = sample_face(np.random.default_rng(BALD_SEED))
    assert face.style.volume == 0
    canvas = _canvas(face, 128)
    image = draw_face(BALD_SEED, 128) @ LUMINANCE
    blended = []
    for row in np.flatnonzero((canvas.v[:, 64] > -0.5) & (canvas.v[:, 64] < -0.1)):
        edge = int(np.argmax(_outline(face, canvas.u[row], canvas.v[row]) < 1))
        outside, inside = image[row, edge - 3], image[row, edge + 3]
        share = (image[row, edge - 2 : edge + 2] - outside) / (inside - outside)
        blended.append(bool(((share > 0.1) & (share < 0.65)).any()))
    assert len(blended) > 20
    assert np.mean(blended) > 0.3


@pytest.mark.parametrize("side", [-1, 1])
def test_pupils_are_darker_than_the_skin_below_them(side: int) -> None:
    bare = [seed for seed in range(40) if sample_face(np.random.default_rng(seed)).glasses is None]
    for seed in bare[:12]:
        image = draw_face(seed, 128) @ LUMINANCE
        pupil = image[eye_index(seed, side, 128)]
        cheek = image[eye_index(seed, side, 128, down=0.2)]
        assert pupil < 0.6 * cheek, seed


def test_eyes_lie_where_aligned_portraits_have_them() -> None:
    rows, columns = np.array([[eye_index(seed, side, 64) for side in (-1, 1)] for seed in range(64)]).transpose(2, 0, 1)
    assert 0.42 < (rows.mean() + 0.5) / 64 < 0.47
    assert 0.20 < (columns[:, 1] - columns[:, 0]).mean() / 64 < 0.30
    assert rows.min() > 20
    assert rows.max() < 36
