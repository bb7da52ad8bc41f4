"""Images of more than 8 bits per channel, with value ranges as a pack stores them."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.xfer.data.image_writers import GREY, assert_colour, png16_bytes, pnm_bytes, save, tiff_bytes
from xfer.data.deep_images import sample_values
from xfer.data.image_formats import UnreadableImageError
from xfer.data.images import read_image
from xfer.data.pixel_rules import needs_pixel_rules

LEVELS = (300, 2_000, 3_900)
TWELVE_BITS = {"integer": (0.0, 4_095.0)}
GREY_12 = np.full((40, 40), 2_000, np.uint16)
RGB_12 = np.broadcast_to(np.uint16(LEVELS), (40, 40, 3))
OPAQUE_12 = np.dstack([RGB_12, np.full((40, 40), 65_535, np.uint16)])

DEEP_INTEGERS = {  # file name: content, and the values expected
    "grey.png": (png16_bytes(GREY_12, 0), (2_000,) * 3),
    "grey and alpha.png": (png16_bytes(np.dstack([GREY_12, GREY_12 * 0 + 65_535]), 4), (2_000,) * 3),
    "rgb.png": (png16_bytes(RGB_12, 2), LEVELS),
    "rgba.png": (png16_bytes(OPAQUE_12, 6), LEVELS),
    "grey.pgm": (pnm_bytes(GREY_12, 65_535), (2_000,) * 3),
    "grey, 12 bits declared.pgm": (pnm_bytes(GREY_12, 4_095), (2_000,) * 3),
    "rgb.ppm": (pnm_bytes(RGB_12, 65_535), LEVELS),
    "rgb, 12 bits declared.ppm": (pnm_bytes(RGB_12, 4_095), LEVELS),
    "white is zero.tif": (tiff_bytes(GREY_12, photometric=0), (2_095,) * 3),
    "uint32.tif": (tiff_bytes(GREY_12.astype(np.uint32)), (2_000,) * 3),
    **{
        f"{name}, {order}, deflate {deflate}.tif": (tiff_bytes(values, order, extra, deflate=deflate), levels)
        for order in "<>"
        for deflate in (False, True)
        for name, values, extra, levels in (
            ("grey", GREY_12, None, (2_000,) * 3),
            ("int16", GREY_12.astype(np.int16), None, (2_000,) * 3),
            ("int32", GREY_12.astype(np.int32), None, (2_000,) * 3),
            ("rgb", RGB_12, None, LEVELS),
            ("rgba", OPAQUE_12, 2, LEVELS),
            ("rgba, premultiplied", OPAQUE_12, 1, LEVELS),
        )
    },
}


@pytest.mark.parametrize("name", DEEP_INTEGERS)
def test_integers_of_more_than_8_bits_follow_one_rule_in_every_format(name):
    content, levels = DEEP_INTEGERS[name]
    pixels = read_image(content, 16, TWELVE_BITS)
    assert_colour(pixels, np.rint(np.array(levels) / 4_095 * 255), within=0)
    assert needs_pixel_rules(content)
    kind, values = sample_values(content)
    assert kind == "integer"
    assert set(np.unique(values)) <= {*LEVELS, 2_095}


def test_16_bit_color_is_scaled_before_its_lower_bits_are_lost():
    """Pillow keeps the upper 8 bits, which are 0 here."""
    pixels = read_image(png16_bytes(np.broadcast_to(np.uint16((10, 128, 255)), (40, 40, 3)), 2), 16)
    assert_colour(pixels, (10, 128, 255), within=0)


def test_color_of_16_bits_is_decoded_exactly_at_every_pixel():
    values = np.random.default_rng(0).integers(0, 2**16, (64, 64, 3)).astype(np.uint16)
    for content in (png16_bytes(values, 2), tiff_bytes(values), tiff_bytes(values, ">"), pnm_bytes(values, 65_535)):
        assert np.array_equal(sample_values(content)[1], values.reshape(-1, 3))


def test_a_photo_of_8_bits_widened_to_16_gives_the_same_pixels():
    photo = np.random.default_rng(1).integers(0, 256, (50, 50, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG")
    expected = read_image(stream.getvalue(), 32)
    for factor in (1, 257):  # the range is that of 8 or of 16 bits
        for content in (png16_bytes(photo * np.uint16(factor), 2), tiff_bytes(photo * np.uint16(factor), ">")):
            assert np.array_equal(read_image(content, 32), expected)


@pytest.mark.parametrize("scale", [1, 255])
def test_floating_point_from_0_to_1_or_255_looks_like_8_bits(scale):
    photo = np.tile(np.linspace(0, 255, 40).round().astype(np.uint8), (40, 1))
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG")
    values = (photo / 255 * scale).astype(np.float32)
    for order in "<>":
        for deflate in (False, True):
            content = tiff_bytes(values, order, deflate=deflate)
            assert np.array_equal(read_image(content, 32), read_image(stream.getvalue(), 32))


@pytest.mark.parametrize("value", [60_000, 4_000, 1_000, 250])
def test_a_constant_bright_image_stays_bright(value):
    assert read_image(tiff_bytes(np.full((20, 20), value, np.uint16)), 8).min() > 230
    assert read_image(tiff_bytes(np.full((20, 20), value, np.int32)), 8).min() > 230


def test_a_black_image_stays_black():
    for dtype in (np.uint16, np.int16, np.int32, np.float32):
        assert read_image(tiff_bytes(np.zeros((20, 20), dtype)), 8).max() == 0


def test_a_constant_image_in_an_unknown_unit_is_mid_grey_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in (np.full((20, 20), -40, np.int32), np.full((20, 20), 3e4, np.float32)):
            assert_colour(read_image(tiff_bytes(values), 8), GREY, within=0)


@pytest.mark.parametrize("side", [16, 64, 200])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_hot_pixel_changes_nothing_else(side, channels):
    values = np.random.default_rng(2).integers(500, 4_000, (side, side, channels)).astype(np.uint16)
    hot = values.copy()
    hot[0, 0] = 65_535  # outside the center crop
    changed, content = tiff_bytes(hot.squeeze()), tiff_bytes(values.squeeze())
    assert np.array_equal(read_image(changed, 8)[1:, 1:], read_image(content, 8)[1:, 1:])


def test_a_12_bit_image_uses_the_range_of_its_data_set_not_its_own():
    dark = tiff_bytes(np.full((20, 20), 200, np.uint16))
    assert_colour(read_image(dark, 8), (200,) * 3)
    assert_colour(read_image(dark, 8, TWELVE_BITS), (12,) * 3, within=1)
    assert_colour(read_image(dark, 8, {"float": (0.0, 1.0)}), (200,) * 3)  # no range of this kind


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_signed_values_keep_their_order(dtype):
    ranges = {"integer": (-1_000.0, 3_000.0), "float": (-1_000.0, 3_000.0)}
    for value, level in ((-1_000, 0), (0, 64), (3_000, 255), (9_000, 255), (-2_000, 0)):
        pixels = read_image(tiff_bytes(np.full((20, 20), value, dtype)), 8, ranges)
        assert_colour(pixels, (level,) * 3, within=0)


MISSING = {  # kind of missing value: content of the image
    "NaN": (np.float32, np.nan, None),
    "infinity": (np.float32, np.inf, None),
    "minus infinity": (np.float32, -np.inf, None),
    "smallest float": (np.float32, -3.4e38, None),
    "large float": (np.float32, 1e31, None),
    "-9999": (np.float32, -9_999, None),
    "-32768": (np.int16, -32_768, None),
    "-9999, integer": (np.int32, -9_999, None),
    "declared": (np.float32, -1, "-1"),
    "declared as integer": (np.int16, -500, "-500"),
    "declared beyond float32": (np.float32, -np.inf, "-1.7e308"),
}


@pytest.mark.parametrize("kind", MISSING)
def test_an_image_with_missing_values_is_refused_with_their_number(kind):
    dtype, value, nodata = MISSING[kind]
    values = np.tile(np.linspace(10, 99, 20), (20, 1)).astype(dtype)
    assert read_image(tiff_bytes(values, nodata=nodata), 8).shape == (8, 8, 3)
    values[3, 4] = value
    content = tiff_bytes(values, nodata=nodata)
    with pytest.raises(UnreadableImageError, match=r"^missing values: 1 of 400 values are NaN, infinite or nodata"):
        read_image(content, 8)
    assert sample_values(content) is None


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("values", [RGB_12, GREY_12, GREY_12.astype(np.int16)], ids=["color", "grey", "signed"])
def test_16_bit_tiffs_in_separate_planes_are_refused_because_pillow_garbles_them(values, order):
    content = tiff_bytes(values, order, planar=2)
    assert needs_pixel_rules(content)
    with pytest.raises(UnreadableImageError, match="in separate planes are not supported: save the channels inter"):
        read_image(content, 8)


def test_floating_point_in_a_separate_plane_is_read_or_refused():
    values = np.full((20, 20), 0.8, np.float32)
    assert_colour(read_image(tiff_bytes(values, planar=2), 8), (204,) * 3, within=0)
    with pytest.raises(UnreadableImageError, match="in separate planes"):
        read_image(tiff_bytes(values, ">", planar=2), 8)


@pytest.mark.parametrize("values", [np.ones((9, 9)), np.ones((9, 9, 3), np.float32)], ids=["64 bits", "color"])
def test_a_tiff_of_a_type_that_pillow_does_not_decode_is_refused_as_such(values):
    with pytest.raises(UnreadableImageError, match="Pillow does not decode TIFFs of this type, such as 64-bit or"):
        read_image(tiff_bytes(values), 8)


def test_signed_bytes_keep_their_order():
    ranges = {"integer": (-100.0, 100.0)}
    for value, level in ((-100, 0), (0, 128), (100, 255)):
        assert_colour(read_image(tiff_bytes(np.full((20, 20), value, np.int8)), 8, ranges), (level,) * 3, within=0)


def test_nodata_that_is_a_possible_brightness_does_not_set_the_range():
    values = np.full((40, 40), 3_000, np.uint16)
    values[:10] = 65_535
    pixels = read_image(tiff_bytes(values, nodata="65535"), 16)
    assert_colour(pixels[8:], (187,) * 3, within=0)


def test_an_image_of_16_bits_is_rotated_as_its_exif_data_say(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    values = np.full((40, 40), 1_000, np.uint16)
    values[:20] = 60_000
    pixels = read_image(save(Image.fromarray(values), tmp_path / "a.png", exif=exif), 16)
    assert pixels[2].max() < 10 < 230 < pixels[-3].min()
