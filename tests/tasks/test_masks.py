"""Masks: cropped like the photo, never smaller in latents, feathered at the edge."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentfaces.errors import UserError
from latentfaces.tasks.masks import feathered, read_mask, shrunk
from latentfaces.tasks.photos import OwnPhotos


def photo_of(width: int, height: int) -> OwnPhotos:
    return OwnPhotos(["me.png"], torch.zeros(1, 3, 16, 16, dtype=torch.uint8), [(width, height)])


def hole_in(mask: str, photos: OwnPhotos, resolution: int) -> torch.Tensor:
    return read_mask(mask, photos, resolution)[0]


def painted(path: Path, width: int, height: int, box: tuple[int, int, int, int], mode: str = "L") -> str:
    """A black mask with a white box (left, top, right, bottom)."""
    image = Image.new(mode, (width, height), 0)
    image.paste(255 if mode in ("L", "1") else (255, 255, 255), box)
    image.save(path)
    return str(path)


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_mask_is_cropped_and_resized_like_its_photo(mode: str, scale: int, tmp_path: Path) -> None:
    # A photo of 24x16, whose centred square begins at column 4: columns 6 to 9 of the photo are 2 to 5 of the square.
    mask = painted(tmp_path / "m.png", 24 * scale, 16 * scale, (6 * scale, 3 * scale, 10 * scale, 8 * scale), mode)
    expected = np.zeros((16, 16), bool)
    expected[3:8, 2:6] = True
    assert np.array_equal(hole_in(mask, photo_of(24, 16), 16)[0, 0], expected)


def test_an_erased_part_is_a_hole(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 16))
    image.save(tmp_path / "m.png")
    hole = hole_in(str(tmp_path / "m.png"), photo_of(16, 16), 16)
    assert hole.sum() == 4 * 16
    assert hole[..., :4].all()


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    mask = painted(tmp_path / "m.png", 20, 20, (5, 5, 9, 9))
    with pytest.raises(UserError, match=r"task.mask=.*20x20.*me.png 24x16"):
        hole_in(mask, photo_of(24, 16), 16)
    hole_in(mask, photo_of(1001, 1000), 16)  # but for rounding


def test_black_missing_or_damaged_masks_are_refused(tmp_path: Path) -> None:
    for box in ((0, 0, 0, 0), (0, 0, 4, 16)):  # the second is white only where the photo is cut
        with pytest.raises(UserError, match=r"task.mask=.*black"):
            hole_in(painted(tmp_path / "m.png", 24, 16, box), photo_of(24, 16), 16)
    (tmp_path / "torn.png").write_bytes(b"no picture")
    Image.effect_noise((500, 500), 50).save(tmp_path / "damaged.png")
    first, *others = (tmp_path / "damaged.png").read_bytes().split(b"IDAT")
    (tmp_path / "damaged.png").write_bytes(first + b"IDAT" + b"\0".join(others))
    for name in ("nowhere.png", "torn.png", "damaged.png"):
        with pytest.raises(UserError, match=r"task.mask=.*cannot be read"):
            hole_in(str(tmp_path / name), photo_of(24, 16), 16)


def test_a_latent_is_in_the_hole_as_soon_as_one_of_its_pixels_is() -> None:
    hole = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    hole[0, 0, 5, 12] = True
    assert shrunk(hole, 4, 4).nonzero().tolist() == [[0, 0, 1, 3]]
    assert torch.equal(shrunk(hole, 16, 16), hole)


def test_the_edge_is_soft_inside_the_hole_alone() -> None:
    hole = torch.zeros(1, 1, 1, 16, dtype=torch.bool).expand(1, 1, 16, 16).clone()
    hole[..., 6:] = True  # to the picture's own border, which is no edge
    assert feathered(hole, 3)[0, 0, 8].tolist() == [0] * 6 + [0.25, 0.5, 0.75] + [1] * 7
    assert torch.equal(feathered(hole, 0), hole.float())
    narrow = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    narrow[..., 6:9] = True
    assert feathered(narrow, 5)[0, 0, 8, 5:10].tolist() == [0, 0.5, 1, 0.5, 0]


def test_a_photo_is_no_mask(tmp_path: Path) -> None:
    gray = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    Image.fromarray(gray).save(tmp_path / "me.png")
    with pytest.raises(UserError, match="is not black and white"):
        hole_in(str(tmp_path / "me.png"), photo_of(64, 64), 16)
