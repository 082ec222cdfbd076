"""Detection and choice of faces; the detector itself on a photo that the package scikit-image contains."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from latentfaces.data import align
from latentfaces.data.align import Face, detect, distinct, find_faces, reason_against, sharpness
from latentfaces.data.crops import Square, crop, inverse, points_in
from latentfaces.errors import UserError

LANDMARKS = np.array([[40.0, 50], [60, 50], [50, 60], [42, 80], [58, 80]])


def face_at(x: float, y: float, score: float = 0.9, scale: float = 1.0) -> Face:
    """A frontal face with its eyes 20 * scale apart."""
    marks = (LANDMARKS - [50, 60]) * scale + [x, y]
    box = np.array([x - 20 * scale, y - 25 * scale, x + 20 * scale, y + 30 * scale])
    return Face(marks, box, score)


def noise(size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    """A photo of NASA in the public domain, which scikit-image contains, 512 x 512."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None or not align.has_detector():
        pytest.skip("needs the extra align")
    return Image.open(Path(spec.origin).with_name("data") / "astronaut.png").convert("RGB")


def test_best_of_overlapping_faces_is_kept() -> None:
    faces = [face_at(100, 100, 0.6), face_at(103, 101, 0.9), face_at(300, 100, 0.7)]
    assert [face.score for face in distinct(faces)] == [0.9, 0.7]
    assert distinct([]) == []


def test_turn_is_the_shift_of_the_nose_in_eye_distances() -> None:
    face = face_at(50, 60)
    assert face.turn == pytest.approx(0)
    face.landmarks[2, 0] += 8
    assert face.turn == pytest.approx(0.4)


def test_reasons_against_a_face() -> None:
    image = noise(64)
    assert reason_against(face_at(50, 60), image) == ""
    assert "too small: 27 pixels, 32 needed" in reason_against(face_at(50, 60, scale=0.25), image)
    aside = face_at(50, 60)
    aside.landmarks[2, 0] += 8
    assert "turned away" in reason_against(aside, image)
    assert "blurred" in reason_against(face_at(50, 60), noise(4).resize((64, 64)))


def test_sharpness_falls_with_blur() -> None:
    values = [sharpness(noise(128).filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 4 * values[3]


def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(align, "EXTRA", ("no_such_package",))
    align.session.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'latentfaces\[align\]'"):
        align.session()


def test_detector_finds_the_face_of_a_photo(astronaut: Image.Image) -> None:
    (face,) = find_faces(astronaut)
    assert face.score > 0.8
    left, top, right, bottom = face.box
    assert 150 < left < face.landmarks[:, 0].min() < face.landmarks[:, 0].max() < right < 300
    assert 30 < top < face.landmarks[:, 1].min() < face.landmarks[:, 1].max() < bottom < 200
    assert abs(face.turn) < 0.1
    assert reason_against(face, crop(astronaut, face.square, 64)) == ""


def test_noise_has_no_face(astronaut: Image.Image) -> None:
    assert detect(noise(96)) == find_faces(noise(300)) == []


def test_landmarks_follow_a_photo_that_is_turned_and_scaled(astronaut: Image.Image) -> None:
    (upright,) = find_faces(astronaut)
    square = Square((223, 125), (170, 90))  # turned by 28 degrees
    (turned,) = find_faces(crop(astronaut, square, 300))
    expected = points_in(inverse(square.affine(300)), upright.landmarks)
    eyes = np.hypot(*(expected[1] - expected[0]))
    assert np.hypot(*(turned.landmarks - expected).T).mean() < 0.03 * eyes


def test_aligned_crop_is_framed_already(astronaut: Image.Image) -> None:
    (face,) = find_faces(astronaut)
    (again,) = find_faces(crop(astronaut, face.square, 256))
    assert again.square.is_near(Square.central(256, 256))
    assert again.square.center == pytest.approx((128, 128), abs=3)
    assert again.square.side == pytest.approx(256, rel=0.03)


def test_largest_of_several_faces_comes_first(astronaut: Image.Image) -> None:
    both = Image.new("RGB", (900, 512))
    both.paste(astronaut.resize((380, 380)), (0, 0))
    both.paste(astronaut, (388, 0))
    first, second = find_faces(both)
    assert first.box[0] > 450
    assert second.box[2] < 300
