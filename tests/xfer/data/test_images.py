"""Decoding: every photo upright and in its colors, everything else refused with the reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.xfer.data.image_writers import BLUE, GREEN, GREY, RED, WHITE, assert_colour, plain, save
from xfer import hashing
from xfer.data.deep_images import sample_values
from xfer.data.image_formats import IMAGE_FORMATS, IMAGE_SUFFIXES, MAX_BYTES, MAX_PIXELS, UnreadableImageError
from xfer.data.images import ImageFile, read_image, to_square
from xfer.data.pixel_rules import needs_pixel_rules

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
