"""Image formats that are decoded, and limits that are checked before decoding."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000")
"""Formats that are decoded, detected by content. Formats that run an interpreter (EPS) or describe scenes are not."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""Usual suffixes of images. Files in a folder that carry one are left to the decoder; others are opened to find out."""
MAX_PIXELS = 64_000_000
"""Maximum pixels of an image: 64 megapixels take 192 MB once decoded. Pillow's own limit is 179 megapixels."""
MAX_BYTES = 256 * 2**20
"""Maximum size of an image file."""
TIFF_SIGNATURES = (b"II*\0", b"MM\0*")

EncodedImage = Path | bytes | Image.Image
"""An image file, the content of one, or an image that another library has decoded."""


class UnreadableImageError(ValueError):
    """The file is not an image, is damaged, has missing values, or exceeds the limits above."""


def open_stream(file: Path | bytes) -> Path | io.BytesIO:
    """Return what `Image.open` takes for a file or the content of one."""
    return io.BytesIO(file) if isinstance(file, bytes) else file


def is_jpeg(file: Path | bytes) -> bool:
    """Return whether a file is a JPEG, which has 8 bits and no transparency: most data sets need no slower check."""
    return first_bytes(file, 2) == b"\xff\xd8"


def first_bytes(file: Path | bytes, count: int) -> bytes:
    """Return the first bytes of a file, or of the content of one."""
    if isinstance(file, bytes):
        return file[:count]
    with file.open("rb") as stream:
        return stream.read(count)


def check_pixels(image: Image.Image) -> None:
    """Raise an UnreadableImageError if an image has more than MAX_PIXELS."""
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
