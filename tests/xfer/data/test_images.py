"""Decoding: every photo upright and in its colors, everything else refused with the reason."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from xfer import hashing
from xfer.data.images import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    MAX_BYTES,
    MAX_PIXELS,
    ImageFile,
    UnreadableImageError,
    needs_pixel_rules,
    read_image,
    sample_values,
    to_square,
)

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def plain(mode, colour, size=(40, 40)):
    return Image.new(mode, size, colour)


def save(image, path, **options):
    image.save(path, **options)
    return path


def assert_colour(pixels, colour, within=3):
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.reshape(-1, 3).astype(int) - colour).max() <= within


PLAIN = {  # file name: the saved image, and the color expected
    "rgb.png": (plain("RGB", RED), RED),
    "rgb.jpg": (plain("RGB", RED), (254, 0, 0)),
    "cmyk.jpg": (plain("CMYK", (0, 255, 255, 0)), RED),
    "cmyk.tif": (plain("CMYK", (255, 255, 0, 0)), BLUE),
    "grey.png": (plain("L", 128), GREY),
    "grey.jpg": (plain("L", 128), GREY),
    "grey and alpha.png": (plain("LA", (0, 127)), GREY),
    "one bit.png": (plain("1", 1), WHITE),
    "palette.gif": (plain("RGB", BLUE).quantize(4), BLUE),
    "rgba, opaque.png": (plain("RGBA", (*GREEN, 255)), GREEN),
    "rgba, invisible.png": (plain("RGBA", (*GREEN, 0)), WHITE),
    "rgba, half.png": (plain("RGBA", (0, 0, 0, 127)), GREY),
    "rgba.webp": (plain("RGBA", (*GREEN, 0)), WHITE),
    "bmp.bmp": (plain("RGB", GREEN), GREEN),
    "ppm.ppm": (plain("RGB", GREEN), GREEN),
    "pgm.pgm": (plain("L", 128), GREY),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.filterwarnings("error")
def test_a_plain_image_keeps_its_color_in_every_mode_and_format(tmp_path, name):
    image, colour = PLAIN[name]
    options = {"lossless": True} if name.endswith("webp") else {}
    assert_colour(read_image(save(image, tmp_path / name, **options), 16), colour, within=4)


def test_the_transparent_color_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([*GREEN, *RED])
    image.paste(0, (0, 0, 20, 40))
    pixels = read_image(save(image, tmp_path / "hole.png", transparency=1), 40)
    assert_colour(pixels[:, :15], GREEN)
    assert_colour(pixels[:, 25:], WHITE)


def test_the_transparent_color_of_an_rgb_image_becomes_white(tmp_path):
    assert_colour(read_image(save(plain("RGB", RED), tmp_path / "hole.png", transparency=RED), 8), WHITE)


ORIENTATIONS = {  # EXIF value: the transposition that its inverse undoes
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
def test_a_photo_is_rotated_as_its_exif_data_say(tmp_path, orientation, name):
    upright = Image.new("RGB", (64, 32))
    for (left, top), colour in {(0, 0): RED, (32, 0): GREEN, (0, 16): BLUE, (32, 16): WHITE}.items():
        upright.paste(colour, (left, top, left + 32, top + 16))
    rotated = upright.transpose(ORIENTATIONS[orientation]) if ORIENTATIONS[orientation] is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read_image(save(rotated, tmp_path / name, exif=exif), 32)
    corners = [pixels[4, 4], pixels[4, 27], pixels[27, 4], pixels[27, 27]]
    for corner, colour in zip(corners, (RED, GREEN, BLUE, WHITE), strict=True):
        assert_colour(corner, colour, within=12)


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp", "pages.tif"])
def test_the_first_of_several_frames_is_used(tmp_path, name):
    frames = [plain("RGB", colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert_colour(read_image(path, 16), RED, within=4)


@pytest.mark.parametrize("size", [(100, 20), (20, 100), (1, 1), (8, 700)])
def test_any_aspect_ratio_is_resized_to_a_square(tmp_path, size):
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0] // 2, size[1]))
    pixels = read_image(save(image, tmp_path / "a.png"), 32)
    assert pixels.shape == (32, 32, 3)
    if size[0] > 1:
        assert_colour(pixels[:, :12], RED, within=30)
    assert_colour(pixels[:, 20:], BLUE, within=30)


@pytest.mark.parametrize("name", ["large.jpg", "large.png"])
def test_a_large_photo_equals_one_resized_in_a_single_step(tmp_path, name):
    x, y = np.meshgrid(np.linspace(0, 1, 900), np.linspace(0, 1, 700))
    waves = [127 + 120 * np.sin(6 * (x * a + y * b)) for a, b in ((1, 0), (0, 1), (1, 1))]
    image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
    box = (900 / 16, 700 / 16, 900 * 15 / 16, 700 * 15 / 16)
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BICUBIC, box=box)).astype(int)
    pixels = read_image(save(image, tmp_path / name, quality=95), 48).astype(int)
    assert np.abs(pixels - expected).max() <= (8 if name.endswith("jpg") else 0)


def test_the_format_is_detected_from_the_content_not_the_name(tmp_path):
    path = save(plain("RGB", RED), tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert_colour(read_image(path, 8), RED)


def test_bytes_are_read_like_the_file(tmp_path):
    path = save(plain("RGB", RED, (30, 20)), tmp_path / "a.jpg")
    assert np.array_equal(read_image(path.read_bytes(), 16), read_image(path, 16))
    assert np.array_equal(ImageFile(path).read(16), read_image(path, 16))
    assert (ImageFile(path).name, ImageFile(path).digest()) == ("a.jpg", hashing.sha256_file(path))


# More than 8 bits per channel, with ranges as a pack stores them


def tiff_bytes(values, order="<", extra_sample=None, photometric=None, nodata=None, deflate=False, planar=1):
    """Write an uncompressed or deflated TIFF of any type, which Pillow cannot: [H, W] or [H, W, channels]."""
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflate else data
    tags = {
        256: ("I", [values.shape[1]]),
        257: ("I", [values.shape[0]]),
        258: ("H", [values.dtype.itemsize * 8] * channels),
        259: ("H", [8 if deflate else 1]),
        262: ("H", [photometric if photometric is not None else 2 if channels > 2 else 1]),
        273: ("I", [8] if planar == 1 else [8 + plane * len(data) // channels for plane in range(channels)]),
        277: ("H", [channels]),
        278: ("I", [values.shape[0]]),
        279: ("I", [len(data)] if planar == 1 else [len(data) // channels] * channels),
        284: ("H", [planar]),
        **({338: ("H", [extra_sample])} if extra_sample is not None else {}),
        339: ("H", [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels),
        **({42113: ("s", nodata.encode() + b"\0")} if nodata else {}),
    }
    directory_at = 8 + len(data) + len(data) % 2
    extra_at = directory_at + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for tag, (form, content) in tags.items():
        value = content if form == "s" else struct.pack(f"{order}{len(content)}{form}", *content)
        if len(value) > 4:
            location = struct.pack(f"{order}I", extra_at + len(extra))
            extra += value + b"\0" * (len(value) % 2)
        else:
            location = value.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, {"s": 2, "H": 3, "I": 4}[form], len(content)) + location
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", directory_at)
    return header + data + b"\0" * (len(data) % 2) + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4 + extra


def png16_bytes(values, color_type, transparent=None):
    """Write a PNG of 16 bits per channel, which Pillow can for grey only."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
        + (chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def pnm_bytes(values, maximum):
    magic = b"P6" if values.ndim == 3 else b"P5"
    return b"%b\n%d %d\n%d\n" % (magic, *values.shape[1::-1], maximum) + values.astype(">u2").tobytes()


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


# Transparency


def icon(ink, mode="RGBA"):
    """A square of ink in the middle of a transparent image."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((*ink, 255), (24, 24, 40, 40))
    if mode == "P":
        palette = Image.new("P", image.size, 0)
        palette.putpalette([*BLUE, *ink])
        palette.paste(1, (24, 24, 40, 40))
        palette.info["transparency"] = 0
        return palette
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(
    ("ink", "background"), [(WHITE, 0), ((240, 240, 240), 0), (GREY, 255), ((0, 0, 0), 255), ((200, 200, 200), 255)]
)
def test_ink_on_transparency_stays_visible(tmp_path, mode, ink, background):
    pixels = read_image(save(icon(ink, mode), tmp_path / "a.png"), 64)
    assert_colour(pixels[:8], (background,) * 3)
    assert_colour(pixels[28:36, 28:36], ink)


def test_white_ink_with_a_soft_edge_is_composited_on_black(tmp_path):
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.putalpha(Image.linear_gradient("L").resize((64, 64)))
    pixels = read_image(save(image, tmp_path / "a.png"), 64)
    assert pixels[0].max() < 30
    assert pixels[-1].min() > 225


def test_a_white_shape_with_dark_parts_keeps_a_white_background(tmp_path):
    image = icon(WHITE)
    image.paste((0, 0, 0, 255), (24, 24, 40, 28))  # a quarter of the ink
    assert_colour(read_image(save(image, tmp_path / "a.png"), 64)[:8], WHITE)


@pytest.mark.parametrize(
    "content",
    [
        png16_bytes(np.dstack([np.full((40, 40), 65_535, np.uint16), np.eye(40, dtype=np.uint16) * 65_535]), 4),
        png16_bytes(np.where(np.eye(40), 65_535, 7).astype(np.uint16), 0, transparent=(7,)),
        png16_bytes(np.dstack([np.where(np.eye(40), 65_535, 7)] * 3).astype(np.uint16), 2, transparent=(7, 7, 7)),
    ],
    ids=["grey and alpha", "transparent grey", "transparent color"],
)
def test_white_ink_of_16_bits_stays_visible(content):
    pixels = read_image(content, 40)
    assert pixels.min() == 0
    assert pixels.max() > 200


def test_rules_apply_only_to_deep_or_transparent_images(tmp_path):
    for name, (image, _) in PLAIN.items():
        path = save(image, tmp_path / name)
        assert needs_pixel_rules(path) == needs_pixel_rules(path.read_bytes()) == ("alpha" in name or "rgba" in name)
        assert sample_values(path) is None
    (tmp_path / "torn.png").write_bytes(b"torn")
    assert not needs_pixel_rules(tmp_path / "torn.png")
    assert not needs_pixel_rules(None)


# Errors


def encoded(form, side=200):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, form)
    return stream.getvalue()


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(boom) print\nshowpage\n%%EOF\n"

BROKEN = {
    "nothing.jpg": b"",
    "text.jpg": b"this is text, not an image\n" * 20,
    "page.png": b"<html><body>404</body></html>",
    "script.jpg": EPS,
    "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    "table.tif": b"SIMPLE  =                    T / conforms to FITS standard" + b" " * 3000,
    "half.jpg": encoded("JPEG")[:9000],
    "half.png": encoded("PNG")[:9000],
    "half.gif": encoded("GIF")[:2000],
    "half.webp": encoded("WEBP")[:2000],
    "half.tif": encoded("TIFF")[:9000],
    "half.bmp": encoded("BMP")[:9000],
    "header.jpg": encoded("JPEG")[:20],
    "bomb.png": png_header(20_000, 20_000),
    "just too large.png": png_header(9_000, 9_000),
    "too long.png": png_header(1, MAX_PIXELS + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_not_an_image_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(UnreadableImageError) as caught:
        read_image(path, 16)
    assert 3 < len(str(caught.value)) <= 200


@pytest.mark.parametrize("name", BROKEN)
def test_bytes_that_are_not_an_image_are_refused_with_a_reproducible_message(name):
    messages = set()
    for _ in range(2):
        with pytest.raises(UnreadableImageError) as caught:
            read_image(bytes(bytearray(BROKEN[name])), 16)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert "0x" not in messages.pop()


@pytest.mark.parametrize("name", ["bomb.png", "just too large.png", "too long.png"])
def test_too_many_pixels_are_refused_before_any_is_decoded(tmp_path, monkeypatch, name):
    def decode(*args):
        raise AssertionError("decoding started")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(UnreadableImageError, match=r"pixels"):
        read_image(path, 16)


def test_too_many_bytes_are_refused_before_the_file_is_opened(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a sparse file
    with pytest.raises(UnreadableImageError, match="larger than 256 MiB"):
        read_image(path, 16)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match="FileNotFoundError"):
        read_image(tmp_path / "missing.jpg", 16)


@pytest.mark.parametrize("form", ["PCX", "TGA", "ICO", "SGI", "EPS", "PDF"])
def test_an_unsupported_format_is_not_decoded_under_any_name(tmp_path, monkeypatch, form):
    def run(*args, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr("subprocess.Popen", run)
    plain("RGB", RED).save(tmp_path / "a.png", form)
    with pytest.raises(UnreadableImageError, match="UnidentifiedImageError"):
        read_image(tmp_path / "a.png", 16)


def test_images_decoded_elsewhere_have_the_same_limit():
    with pytest.raises(UnreadableImageError, match="pixels, more than"):
        to_square(Image.new("1", (1, MAX_PIXELS + 1)), 8)


def test_formats_that_run_an_interpreter_are_not_supported():
    assert not {"EPS", "PDF", "WMF", "FITS"} & set(IMAGE_FORMATS)
    assert not {".eps", ".ps", ".pdf", ".svg"} & IMAGE_SUFFIXES
