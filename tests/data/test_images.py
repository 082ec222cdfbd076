"""Pictures of every kind to square RGB bytes, with known pixels."""

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, TiffTags

from latentfaces.data import images
from latentfaces.data.images import ORIENTATION_TAG, FilterName, Picture, decode_photo

Array = NDArray[Any]
ICC_TAG = 34675


def decode(data: bytes, resolution: int, resize_filter: FilterName = "auto") -> Picture:
    """Decode with the colours last, as pictures are written below."""
    picture = images.decode(data, resolution, resize_filter)
    assert picture.pixels.flags.c_contiguous
    return picture._replace(pixels=picture.pixels.transpose(1, 2, 0))


def encoded(image: Image.Image | Array, kind: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of a picture file."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_rgb(height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture whose pixels all differ."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_picture_of_the_asked_size_keeps_every_byte() -> None:
    picture = random_rgb(8, 8)
    pixels, enlarged, _ = decode(encoded(picture), 8)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, picture)
    assert not enlarged


def test_hash_is_of_the_file_and_not_of_the_pixels() -> None:
    data, again = (encoded(random_rgb(8, 8), compress_level=level) for level in (0, 9))
    assert decode(data, 8).sha256 == hashlib.sha256(data).hexdigest()[:32]
    assert decode(again, 8).sha256 != decode(data, 8).sha256
    assert np.array_equal(decode(again, 8).pixels, decode(data, 8).pixels)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    levels = np.array([[0, 300], [128 * 257, 65535]], dtype=np.uint16)
    pixels = decode(encoded(levels, kind), 2).pixels
    assert pixels[..., 0].tolist() == [[0, 1], [128, 255]]
    assert np.array_equal(pixels, pixels[..., :1].repeat(3, -1))


def test_eight_bit_grey_becomes_three_equal_channels() -> None:
    grey = random_rgb(4, 4)[..., 0]
    assert np.array_equal(decode(encoded(grey), 4).pixels, np.stack([grey] * 3, -1))


def test_transparency_is_laid_on_white() -> None:
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[..., 0] = 200
    picture[..., 3] = [[0, 51], [102, 255]]  # none, a fifth, two fifths, all
    expected = [[[255, 255, 255], [244, 204, 204]], [[233, 153, 153], [200, 0, 0]]]
    assert decode(encoded(picture), 2).pixels.tolist() == expected


def test_grey_with_transparency_is_laid_on_white() -> None:
    picture = np.array([[[0, 0], [0, 255]], [[100, 255], [0, 51]]], np.uint8)
    assert decode(encoded(Image.fromarray(picture, "LA")), 2).pixels[..., 0].tolist() == [[255, 0], [100, 204]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour_is_laid_on_white(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    pixels = decode(encoded(image, kind, transparency=1), 2).pixels
    assert pixels.tolist() == [[[255, 0, 0], [255, 255, 255]], [[255, 255, 255], [0, 0, 255]]]


def test_cmyk_becomes_the_colours_it_prints() -> None:
    inks = np.array([[[0, 0, 0, 0], [0, 255, 255, 0]], [[255, 255, 0, 0], [0, 0, 0, 255]]], np.uint8)
    pixels = decode(encoded(Image.fromarray(inks, "CMYK"), "TIFF"), 2).pixels
    assert pixels.tolist() == [[[255, 255, 255], [255, 0, 0]], [[0, 0, 255], [0, 0, 0]]]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda p: p), (3, lambda p: np.rot90(p, 2)), (6, lambda p: np.rot90(p, -1)), (8, lambda p: np.rot90(p, 1))],
)
def test_picture_is_turned_upright_as_its_exif_says(orientation: int, turn: Any) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    picture = random_rgb(6, 6)
    assert np.array_equal(decode(encoded(picture, exif=exif), 6).pixels, turn(picture))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_which_pillow_turns_by_itself_is_turned_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    picture = random_rgb(6, 6)
    turned = np.rot90(picture, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert np.array_equal(decode(encoded(picture, "TIFF", exif=exif), 6).pixels, turned)


def test_jpeg_of_orientation_six_has_its_left_side_on_top() -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:, :16] = 255
    pixels = decode(encoded(picture, "JPEG", quality=95, exif=exif), 16).pixels
    assert pixels[:6].min() > 245
    assert pixels[-6:].max() < 10


def test_oddly_typed_tag_beside_the_orientation_does_no_harm() -> None:
    # Some cameras write a float where the maker's name belongs; the pixels and the orientation are fine.
    entries = [struct.pack("<HHIf", 271, 11, 1, 1.5), struct.pack("<HHIHH", 274, 3, 1, 6, 0)]
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    picture = random_rgb(6, 6)
    assert np.array_equal(decode(encoded(picture, exif=exif), 6).pixels, np.rot90(picture, -1))


@pytest.mark.parametrize(("height", "width"), [(6, 12), (12, 6), (6, 11)])
def test_square_is_cut_from_the_centre(height: int, width: int) -> None:
    picture = random_rgb(height, width)
    top, left = (height - 6) // 2, (width - 6) // 2
    assert np.array_equal(decode(encoded(picture), 6).pixels, picture[top : top + 6, left : left + 6])


def test_mean_of_the_centre_square_takes_nothing_from_outside_it() -> None:
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, 2:6] = 100
    picture[:, :2] = picture[:, 6:] = 255
    assert (decode(encoded(picture), 2).pixels == 100).all()


def test_other_factors_keep_flat_colours_and_the_direction_of_a_gradient() -> None:
    ramp = np.arange(0, 200, 20, dtype=np.uint8)[None, :, None] + np.zeros((10, 1, 3), np.uint8)
    pixels = decode(encoded(ramp), 7).pixels
    assert (np.diff(pixels[..., 0].astype(int), axis=1) > 0).all()
    assert (pixels == pixels[:1]).all()


@pytest.mark.parametrize("side", [6, 12, 16])
@pytest.mark.parametrize("name", ["box", "bilinear", "bicubic", "lanczos"])
def test_filter_of_each_name_is_pillows(name: FilterName, side: int) -> None:
    picture = random_rgb(side, side)
    expected = Image.fromarray(picture).resize((8, 8), Image.Resampling[name.upper()])
    assert np.array_equal(decode(encoded(picture), 8, name).pixels, np.asarray(expected))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_auto_is_the_mean_for_whole_factors(factor: int) -> None:
    picture = random_rgb(8 * factor, 8 * factor)
    mean = picture.reshape(8, factor, 8, factor, 3).mean((1, 3))
    for chosen in (decode(encoded(picture), 8), decode(encoded(picture), 8, "auto")):
        difference = chosen.pixels - mean
        assert np.abs(difference).max() < 0.6
        assert abs(difference.mean()) < 0.2  # Pillow's box is 0.5 too bright


@pytest.mark.parametrize("side", [12, 17, 20, 6])
def test_auto_is_lanczos_for_other_factors(side: int) -> None:
    picture = random_rgb(side, side)
    resized = Image.fromarray(picture).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(encoded(picture), 8).pixels, np.asarray(resized))


@pytest.mark.parametrize(("side", "expected"), [(4, True), (7, True), (8, False), (9, False)])
def test_enlarging_is_reported(side: int, expected: bool) -> None:
    pixels, enlarged, _ = decode(encoded(random_rgb(side, 20)), 8)
    assert enlarged is expected
    assert pixels.shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.95])
def test_picture_cut_short_raises(kind: str, kept: float) -> None:
    data = encoded(random_rgb(64, 64), kind)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode(data[: int(kept * len(data))], 16)


@pytest.mark.parametrize("data", [b"", b"not a picture at all"])
def test_what_is_no_picture_raises(data: bytes) -> None:
    with pytest.raises(OSError, match="not one of AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP"):
        decode(data, 16)


def test_picture_of_too_many_pixels_raises_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentfaces.data.images.MAX_PIXELS", 12 * 10)
    assert decode(encoded(random_rgb(10, 12)), 4).pixels.shape == (4, 4, 3)
    with pytest.raises(ValueError, match=r"12x11 pixels are more than 120"):
        decode(encoded(random_rgb(11, 12)), 4)


def test_photo_of_two_hundred_megapixels_is_opened_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    data = bytearray(encoded(random_rgb(8, 8), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 12_240, 16_320)
    assert images.open_image(io.BytesIO(data)).size == (16_320, 12_240)
    assert not recwarn.list


def test_header_of_a_billion_pixels_raises_before_they_are_decoded() -> None:
    header = struct.pack(">IIBBBBB", 2**15, 2**15, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    idat = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(ValueError, match=r"more than 268,435,456 pixels"):
        decode(b"\x89PNG\r\n\x1a\n" + chunk + idat, 4)


def smooth_photo(side: int) -> Image.Image:
    """Return a picture with a photo's spectrum: strong low frequencies, weak high ones, and little colour."""
    rng = np.random.default_rng(0)
    grey = np.zeros((side, side))
    for n, weight in ((4, 0.7), (16, 0.2), (64, 0.1)):
        noise = Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8))
        grey += weight * np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC))
    tint = Image.fromarray(rng.integers(0, 60, (4, 4, 3), dtype=np.uint8)).resize((side, side))
    return Image.fromarray((grey[..., None] * 0.75 + np.asarray(tint)).astype(np.uint8))


@pytest.mark.parametrize("resolution", [128, 64, 32])
def test_jpeg_at_reduced_scale_is_the_mean_of_the_full_picture_to_half_a_level(resolution: int) -> None:
    data = encoded(smooth_photo(256), "JPEG", quality=95)
    mean = np.asarray(Image.open(io.BytesIO(data)).reduce(256 // resolution))
    difference = decode(data, resolution).pixels.astype(int) - mean
    assert difference.any()  # it really was decoded at reduced scale
    assert np.abs(difference).mean() < 0.5
    assert abs(difference.mean()) < 0.2
    assert np.abs(difference).max() <= 6


def test_filter_by_name_and_other_formats_are_decoded_in_full() -> None:
    photo = smooth_photo(64)
    assert np.array_equal(decode(encoded(photo), 32).pixels, np.asarray(photo.reduce(2)))
    jpeg = encoded(photo, "JPEG", quality=95)
    full = Image.open(io.BytesIO(jpeg)).resize((32, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(jpeg, 32, "lanczos").pixels, np.asarray(full))


def test_reduced_scale_never_falls_below_the_resolution() -> None:
    jpeg = encoded(smooth_photo(120), "JPEG", quality=95)
    for resolution in (61, 59, 31):
        pixels, enlarged, _ = decode(jpeg, resolution)
        full = decode(jpeg, resolution, "lanczos").pixels
        assert pixels.shape == (resolution, resolution, 3)
        assert not enlarged
        assert np.abs(pixels.astype(int) - full).mean() < 1.5


@pytest.mark.parametrize("orientation", [3, 6])
def test_turned_jpeg_at_reduced_scale_stands_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = smooth_photo(64)
    upright = photo.transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation])
    reduced = decode(encoded(photo, "JPEG", quality=95, exif=exif), 16).pixels
    assert np.abs(reduced.astype(int) - np.asarray(upright.resize((16, 16), Image.Resampling.BOX))).mean() < 1.5


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO"])
def test_formats_that_are_not_listed_are_not_opened(kind: str) -> None:
    # Pillow starts Ghostscript to load PostScript.
    with pytest.raises(OSError, match="not one of AVIF, BMP, GIF, JPEG, PNG, TIFF, WEBP"):
        images.open_image(io.BytesIO(encoded(random_rgb(16, 16), kind)))


def test_every_image_of_the_project_is_opened_by_one_function() -> None:
    source = Path(images.__file__).parents[1]
    assert [path.name for path in source.rglob("*.py") if "Image.open(" in path.read_text()] == ["images.py"]


def fixed(*numbers: float) -> bytes:
    """Return numbers as ICC profiles store them."""
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


SRGB_CURVE = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
LINEAR = b"curv" + bytes(4) + struct.pack(">I", 0)
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def icc_profile(name: str, curve: bytes, primaries: tuple[tuple[float, ...], ...] = ()) -> bytes:
    """Return an ICC profile of RGB or, without primaries, of gray."""
    text = name.encode("utf-16-be")
    text = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    if not primaries:
        tags[b"kTRC"] = curve
    for channel, primary in zip((b"r", b"g", b"b"), primaries, strict=False):
        tags[channel + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*primary)
        tags[channel + b"TRC"] = curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    space = b"RGB " if primaries else b"GRAY"
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x04000000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, bytes(1)) + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colors_of_another_profile_are_converted_to_srgb(kind: str) -> None:
    skin = np.full((8, 8, 3), (224, 172, 140), np.uint8)
    lossless = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(skin, kind, icc_profile=icc_profile("P3", SRGB_CURVE, P3), **lossless), 8).pixels
    # Computed by hand: sRGB curve, the linear matrix from P3 to sRGB, and the curve again.
    assert np.abs(pixels.astype(int) - (234, 169, 135)).max() <= 1 + (kind == "JPEG")


def test_transparency_survives_the_conversion() -> None:
    clear = np.full((4, 4, 4), (224, 172, 140, 0), np.uint8)
    assert (decode(encoded(clear, icc_profile=icc_profile("P3", SRGB_CURVE, P3)), 4).pixels == 255).all()


def test_profile_that_is_called_srgb_and_is_linear_is_converted() -> None:
    gray = np.full((8, 8, 3), 128, np.uint8)
    pixels = decode(encoded(gray, icc_profile=icc_profile("sRGB linear", LINEAR, SRGB)), 8).pixels
    assert np.abs(pixels.astype(int) - 188).max() <= 1  # 255 * (1.055 * (128 / 255) ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_images_of_every_mode_are_converted_to_srgb(mode: str) -> None:
    gray = np.full((8, 8), 128, np.uint8)
    image = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    pixels = decode(encoded(image, icc_profile=icc_profile("gray", LINEAR)), 8).pixels
    assert np.abs(pixels.astype(int) - 188).max() <= 1


def test_transparent_color_survives_the_conversion() -> None:
    skin = np.full((4, 4, 3), (224, 172, 140), np.uint8)
    options = {"transparency": (224, 172, 140), "icc_profile": icc_profile("P3", SRGB_CURVE, P3)}
    assert (decode(encoded(skin, **options), 4).pixels == 255).all()


@pytest.mark.parametrize(
    "profile",
    [
        b"not a profile",
        icc_profile("called otherwise", SRGB_CURVE, SRGB),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ],
)
def test_srgb_and_damaged_profiles_change_nothing(profile: bytes) -> None:
    picture = random_rgb(8, 8)
    assert np.array_equal(decode(encoded(picture, icc_profile=profile), 8).pixels, picture)


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 50_000, np.int32)])
def test_pixels_without_a_known_range_are_rejected(pixels: Array) -> None:
    with pytest.raises(ValueError, match="only pixels of 8 bits, and of 16"):
        decode(encoded(pixels, "TIFF"), 4)


@pytest.mark.parametrize(("tag", "value"), [(258, 12), (262, 0)])
def test_tiff_of_twelve_bits_or_with_white_as_zero_is_rejected(tag: int, value: int) -> None:
    data = bytearray(encoded(np.full((4, 4), 4095, np.uint16), "TIFF"))
    entry = data.index(struct.pack("<HHI", tag, 3, 1))
    struct.pack_into("<H", data, entry + 8, value)
    with pytest.raises(ValueError, match="only pixels of 8 bits, and of 16"):
        decode(bytes(data), 4)


def test_damaged_metadata_does_not_reject_an_image() -> None:
    picture, text = random_rgb(6, 6), PngImagePlugin.PngInfo()
    text.add_text("history", "x" * 2_000_000)
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 274, 2, 2, b"6\0", 0)
    for damaged in ({"exif": b"no EXIF at all"}, {"exif": exif}, {"pnginfo": text}):
        assert np.array_equal(decode(encoded(picture, **damaged), 6).pixels, picture)


@pytest.mark.parametrize(("kind", "turn"), [("AVIF", 1), ("AVIF", 6), ("HEIF", 1), ("HEIF", 6)])
def test_photos_of_phones_are_read_upright(kind: str, turn: int) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image, exif = Image.new("RGB", (64, 32), "blue"), Image.Exif()
    image.paste("red", (0, 0, 32, 32))
    exif[ORIENTATION_TAG] = turn
    image.info["exif"] = exif.tobytes()  # from there the writer of HEIF takes the rotation of the pixels
    photo = decode_photo(encoded(image, kind, quality=90, **({"exif": exif} if kind == "AVIF" else {})))
    assert photo.size == ((64, 32) if turn == 1 else (32, 64))
    first, last = photo.getpixel((4, 4)), photo.getpixel((photo.width - 5, photo.height - 5))
    assert isinstance(first, tuple)
    assert isinstance(last, tuple)
    assert first[0] > 200 > 50 > first[2]
    assert last[2] > 200 > 50 > last[0]


def test_profile_that_is_no_bytes_is_ignored() -> None:
    picture, tags = random_rgb(8, 8), TiffImagePlugin.ImageFileDirectory_v2()
    tags[ICC_TAG], tags.tagtype[ICC_TAG] = 7, TiffTags.LONG
    assert np.array_equal(decode(encoded(picture, "TIFF", tiffinfo=tags), 8).pixels, picture)
