"""From a file to square uint8 pixels, within limits of our own: what cannot be an honest photo is not decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xfer import hashing

IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What is decoded, judged by content. Formats that run an interpreter (EPS) or describe scenes are not among them."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""File names that are looked at; everything else in a folder is none of our business."""
MAX_PIXELS = 64_000_000
"""A 64-megapixel image takes 192 MB once decoded; Pillow's own limit stands at 179 megapixels."""
MAX_BYTES = 256 * 2**20
CENTER_CROP_FRACTION = 0.875
"""The middle share of each side that is kept, timm's and torchvision's usual one: networks are pretrained on crops, in
which things look larger. Cross-validated frozen probes of MobileNetV2 at 128 px on five data sets, mean accuracy
(2026-11-20): squashed and cropped .794, cut square .786, cut square and cropped .785, squashed .775, padded .758.
Drawings of QuickDraw at 64 px, whose bitmaps have a margin of about that width: cropped .755, whole .739."""


class UnreadableImageError(ValueError):
    """The file is no image, a damaged one, or one beyond the limits above."""


class LazyImage(Protocol):
    """One image, wherever it lies: a file, a row of an array, a cell of a table. It holds no pixels itself."""

    @property
    def name(self) -> str:
        """What a message calls it."""
        ...

    def digest(self) -> str:
        """The hash of its content, 64 hexadecimal digits: equal for copies, whatever they are called."""
        ...

    def read(self, size: int) -> NDArray[np.uint8]:
        """RGB pixels, uint8 [size, size, 3], as `to_square` makes them.

        Raises:
            UnreadableImageError: it is no image, or none that is decoded.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def digest(self) -> str:
        """The hash of the file's bytes."""
        return hashing.sha256_file(self.path)

    def read(self, size: int) -> NDArray[np.uint8]:
        """See `read_image`."""
        return read_image(self.path, size)


def read_image(file: Path | bytes, size: int) -> NDArray[np.uint8]:
    """The picture in a file, or in the bytes of one, as `size` x `size` RGB pixels, uint8 [size, size, 3].

    Turned upright as its EXIF data says, its first frame if it has several, transparency laid on white, squashed to a
    square rather than cut to one, and of that the middle (see `CENTER_CROP_FRACTION`).

    Raises:
        UnreadableImageError: see there; the message says what is wrong.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        if (len(file) if isinstance(file, bytes) else file.stat().st_size) > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES // 2**20} MiB")
        with Image.open(stream, formats=IMAGE_FORMATS) as image:
            _check_pixels(image)
            image.draft("RGB", (size * 2, size * 2))  # JPEG decodes straight to about this size: several times faster
            return to_square(ImageOps.exif_transpose(image), size)
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format's code happens to raise
        reason = str(error).replace(repr(stream), "among these bytes") if stream is not file else str(error)
        raise UnreadableImageError(f"{type(error).__name__}: {reason}"[:200]) from error


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The middle of an image (see `CENTER_CROP_FRACTION`) as uint8 [size, size, 3], transparency laid on white.

    Raises:
        UnreadableImageError: more than MAX_PIXELS.
    """
    _check_pixels(image)
    left, top = (1 - CENTER_CROP_FRACTION) / 2 * image.width, (1 - CENTER_CROP_FRACTION) / 2 * image.height
    middle = (left, top, image.width - left, image.height - top)
    return np.asarray(to_rgb(image).resize((size, size), Image.Resampling.BICUBIC, box=middle))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB: transparency laid on white, 16 bits and more stretched over their own range."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow would cut 16-bit values off at 255; their own range is what carries the picture.
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
