"""Decode one image to square uint8 pixels, within limits: files that cannot be photos are not decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xfer import hashing

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000")
"""Formats that are decoded, detected by content. Formats that run an interpreter (EPS) or describe scenes are not."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""Suffixes of the files in a folder that are read as images; others are ignored."""
MAX_PIXELS = 64_000_000
"""Maximum pixels of an image: 64 megapixels take 192 MB once decoded. Pillow's own limit is 179 megapixels."""
MAX_BYTES = 256 * 2**20
CENTER_CROP_FRACTION = 0.875
"""Fraction of each side kept by the center crop, the default of timm and torchvision: networks are pretrained on crops,
in which objects look larger. Cross-validated frozen probes of MobileNetV2 at 128 px on five data sets, mean accuracy
(2026-11-20): squashed and cropped .794, cut square .786, cut square and cropped .785, squashed .775, padded .758.
Drawings of QuickDraw at 64 px, whose bitmaps have a margin of about that width: cropped .755, uncropped .739."""


class UnreadableImageError(ValueError):
    """The file is not an image, is damaged, or exceeds the limits above."""


class LazyImage(Protocol):
    """One image that holds no pixels itself: a file, a row of an array, a cell of a table."""

    @property
    def name(self) -> str:
        """Name of the image in messages."""
        ...

    def digest(self) -> str:
        """Return the hash of the content, 64 hexadecimal digits: equal for copies under other names."""
        ...

    def read(self, size: int) -> NDArray[np.uint8]:
        """Return RGB pixels, uint8 [size, size, 3], prepared by `to_square`.

        Raises:
            UnreadableImageError: it is not an image that can be decoded.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def digest(self) -> str:
        """Return the hash of the file's bytes."""
        return hashing.sha256_file(self.path)

    def read(self, size: int) -> NDArray[np.uint8]:
        """Return the pixels; see `read_image`."""
        return read_image(self.path, size)


def read_image(file: Path | bytes, size: int) -> NDArray[np.uint8]:
    """Decode an image to RGB pixels, uint8 [size, size, 3].

    The image is rotated as its EXIF data say, reduced to its first frame, blended with white where it is transparent,
    center-cropped (see `CENTER_CROP_FRACTION`), and resized to a square without keeping its aspect ratio.

    Args:
        file: an image file, or the content of one.
        size: side of the square in pixels.

    Raises:
        UnreadableImageError: the file cannot be decoded, or exceeds the limits; the message says why.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        if (len(file) if isinstance(file, bytes) else file.stat().st_size) > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES // 2**20} MiB")
        with Image.open(stream, formats=IMAGE_FORMATS) as image:
            _check_pixels(image)
            image.draft("RGB", (size * 2, size * 2))  # JPEG decodes directly to about this size: several times faster
            return to_square(ImageOps.exif_transpose(image), size)
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors
        reason = str(error).replace(repr(stream), "among these bytes") if stream is not file else str(error)
        raise UnreadableImageError(f"{type(error).__name__}: {reason}"[:200]) from error


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Center-crop an image and resize it to RGB pixels, uint8 [size, size, 3].

    Raises:
        UnreadableImageError: it has more than MAX_PIXELS.
    """
    _check_pixels(image)
    left, top = (1 - CENTER_CROP_FRACTION) / 2 * image.width, (1 - CENTER_CROP_FRACTION) / 2 * image.height
    box = (left, top, image.width - left, image.height - top)
    return np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BICUBIC, box=box))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB.

    Transparency becomes white. Values of more than 8 bits are scaled from their own range to 0..255.
    """
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow would clip 16-bit values at 255.
        values = np.asarray(image, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        return Image.fromarray(np.uint8((values - low) / max(high - low, 1e-9) * 255)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
