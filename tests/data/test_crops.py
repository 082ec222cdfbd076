"""Geometry of aligned crops: closed forms, there and back, borders."""

import math

import numpy as np
import pytest
from PIL import Image

from latentfaces.data.crops import (
    Square,
    border_weight,
    crop,
    distance_outside,
    inverse,
    paste,
    points_in,
    warp,
)

UPRIGHT = np.array([[40.0, 50], [60, 50], [50, 60], [42, 80], [58, 80]])
"""Eyes 20 apart, the mouth 30 below them."""


def turned(points: np.ndarray, degrees: float, scale: float = 1.0, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
    angle = math.radians(degrees)
    matrix = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return points @ matrix.T + shift


def smooth(width: int, height: int) -> Image.Image:
    """A photo whose colors vary slowly, each in another direction."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    planes = [128 + 100 * np.sin(x / 11), 128 + 100 * np.cos(y / 9), 128 + 100 * np.sin((x + y) / 13)]
    return Image.fromarray(np.stack(planes, axis=-1).round().astype(np.uint8))


def test_square_of_an_upright_face_is_that_of_the_formula() -> None:
    square = Square.of_landmarks(UPRIGHT)
    assert square.center == pytest.approx((50, 53))  # eyes + 0.1 * 30
    assert square.right == pytest.approx((54, 0))  # max(2 * 20, 1.8 * 30)
    assert square.side == pytest.approx(108)
    assert square.corners == pytest.approx(np.array([[-4, -1], [104, -1], [104, 107], [-4, 107]]))


def test_a_mouth_aside_turns_the_square_as_in_ffhq() -> None:
    square = Square.of_landmarks(UPRIGHT + np.array([[0, 0]] * 3 + [[5, 0]] * 2))
    # x = (20, 0) + (30, -5) points to the right, and the mouth is (5, 30) from the eyes.
    assert square.center == pytest.approx((50.5, 53))
    length = 1.8 * math.hypot(5, 30)
    assert square.right == pytest.approx((50 / math.hypot(50, 5) * length, -5 / math.hypot(50, 5) * length))


def test_wide_eyes_decide_the_side() -> None:
    wide = UPRIGHT * [3, 1]
    assert Square.of_landmarks(wide).side == pytest.approx(4 * 60)


@pytest.mark.parametrize("degrees", [-40, 15, 170])
def test_square_turns_grows_and_moves_with_the_face(degrees: float) -> None:
    square = Square.of_landmarks(UPRIGHT)
    other = Square.of_landmarks(turned(UPRIGHT, degrees, 1.7, (300, 20)))
    assert other.corners == pytest.approx(turned(square.corners, degrees, 1.7, (300, 20)))


def test_map_of_a_crop_goes_there_and_back() -> None:
    affine = Square((50, 40), (20, 15)).affine(64)
    assert points_in(affine, np.array([[32, 32], [64, 32]])) == pytest.approx(np.array([[50, 40], [70, 55]]))
    points = np.random.default_rng(0).uniform(0, 64, (5, 2))
    assert points_in(inverse(affine), points_in(affine, points)) == pytest.approx(points)


def test_upright_square_at_its_own_size_is_the_pixels_themselves() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    found = crop(photo, Square((40, 30), (16, 0)), 32)
    assert np.array_equal(found, photo.crop((24, 14, 56, 46)))


def test_quarter_turn_is_exact() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    found = crop(photo, Square((20, 20), (0, 20)), 40)  # to the right in the crop is downwards in the photo
    assert np.array_equal(found, photo.transpose(Image.Transpose.ROTATE_90))


@pytest.mark.parametrize("size", [5, 12, 25])
def test_reduction_is_free_of_aliasing(size: int) -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    found = np.asarray(crop(Image.fromarray(stripes), Square((200, 200), (90, 40)), size), float)
    assert np.abs(found - 127.5).max() < 8


def test_outside_the_photo_it_is_mirrored_and_then_blurred() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    found = np.asarray(crop(photo, Square((0, 50), (50, 0)), 100), float)
    inside = np.asarray(photo, float)[:, :50]
    assert np.array_equal(found[:, 50:], inside)
    assert np.abs(found[:, 49] - inside[:, 0]).mean() < 0.3 * np.abs(inside[:, 1] - inside[:, 0]).mean()
    assert found[:, :40].std() < 0.7 * inside.std()
    assert found[:, :40].mean() == pytest.approx(inside.mean(), abs=5)


def test_distance_outside_is_that_to_the_nearest_side() -> None:
    distance = distance_outside(Square((0, 50), (50, 0)).affine(100), 100, (100, 100))
    assert distance[50, :50] == pytest.approx(np.arange(49.5, 0, -1))
    assert (distance[:, 50:] == 0).all()


def test_large_photo_is_cropped_as_a_small_one() -> None:
    small, square = smooth(200, 160), Square((100, 80), (50, 20))
    large = small.resize((1600, 1280), Image.Resampling.BICUBIC)
    enlarged = Square((800, 640), (400, 160))
    difference = np.subtract(crop(large, enlarged, 64), crop(small, square, 64), dtype=float)
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize("size", [64, 300])
def test_what_was_cropped_is_pasted_back(size: int) -> None:
    photo, square = smooth(200, 160), Square((100, 80), (50, 20))
    back = paste(photo, crop(photo, square, size), square, border_weight(size))
    assert np.abs(np.subtract(back, photo, dtype=float)).max() <= 5


def test_pixels_outside_the_square_are_exactly_the_photos() -> None:
    photo, square = smooth(200, 160), Square((70, 80), (60, 25))  # it leaves the photo at the left
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    back = np.asarray(paste(photo, face, square, border_weight(64)))
    x, y = np.meshgrid(np.arange(200) + 0.5, np.arange(160) + 0.5)
    inside = points_in(inverse(square.affine(64)), np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(160, 200, 2)
    outside = ((inside < 0) | (inside > 64)).any(-1)
    assert np.array_equal(back[outside], np.asarray(photo)[outside])
    assert (back != np.asarray(photo))[~outside].mean() > 0.5


def test_color_of_the_face_is_matched_at_the_border() -> None:
    photo, square = Image.new("RGB", (100, 100), (120, 100, 80)), Square((50, 50), (30, 0))
    face = Image.new("RGB", (64, 64), (150, 90, 80))
    assert np.array_equal(paste(photo, face, square, border_weight(64)), photo)
    weight = np.zeros((64, 64))
    weight[16:48, 16:48] = 1
    face.paste((50, 50, 50), (16, 16, 48, 48))  # the center does not count
    assert paste(photo, face, square, weight).getpixel((50, 50)) == (20, 60, 50)


def test_weight_is_zero_at_the_border_and_one_inside() -> None:
    weight = border_weight(64)
    assert weight[0].max() == weight[:, -1].max() == 0
    assert (weight[8:-8, 8:-8] == 1).all()
    assert (np.diff(weight[32, :10]) >= 0).all()
    assert weight[32, [2, 4, 6]] == pytest.approx([5 / 32, 1 / 2, 27 / 32])  # of x^2 (3 - 2 x) at 1/4, 1/2 and 3/4


def test_squares_are_near_within_the_tolerance() -> None:
    square = Square.central(120, 100)
    assert (square.center, square.side) == ((60, 50), 100)
    assert Square((65, 50), (45, 5)).is_near(square)
    assert not Square((75, 50), (50, 0)).is_near(square)
    assert not Square((60, 50), (35, 0)).is_near(square)
    assert not Square((60, 50), (48, 14)).is_near(square)


def test_warp_of_a_mask_stays_between_its_values() -> None:
    mask = Image.new("L", (40, 40), 50)
    mask.paste(200, (10, 10, 30, 30))
    values = np.asarray(warp(mask, Square((20, 20), (12, 5)).affine(64), (64, 64)))
    assert (values.min(), values.max()) == (50, 200)  # bicubic weights would give less and more
