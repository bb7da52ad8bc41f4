"""Read one image as square uint8 pixels, within limits: files that cannot be photos are not decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from xfer import hashing
from xfer.data.deep_images import read_deep
from xfer.data.image_formats import (
    IMAGE_FORMATS,
    MAX_BYTES,
    TIFF_SIGNATURES,
    EncodedImage,
    UnreadableImageError,
    check_pixels,
    first_bytes,
    open_stream,
)
from xfer.data.pixel_rules import scale_deep, to_rgb
from xfer.data.value_ranges import NO_RANGES, ValueRanges

CENTER_CROP_FRACTION = 0.875
"""Fraction of each side kept by the center crop, the default of timm and torchvision: networks are pretrained on crops,
in which objects look larger. Cross-validated frozen probes of MobileNetV2 at 128 px on five data sets, mean accuracy
(2026-11-20): squashed and cropped .794, cut square .786, cut square and cropped .785, squashed .775, padded .758.
Drawings of QuickDraw at 64 px, whose bitmaps have a margin of about that width: cropped .755, uncropped .739."""


class LazyImage(Protocol):
    """One image that holds no pixels itself: a file, a row of an array, a cell of a table."""

    @property
    def name(self) -> str:
        """Name of the image in messages."""
        ...

    def digest(self) -> str:
        """Return the hash of the content, 64 hexadecimal digits: equal for copies under other names."""
        ...

    def encoded(self) -> EncodedImage | None:
        """Return the image before decoding, to inspect its values; None if it is 8-bit and opaque by construction."""
        ...

    def read(self, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
        """Return RGB pixels, uint8 [size, size, 3], prepared by `to_square`.

        Args:
            size: side of the square in pixels.
            ranges: value ranges of the data set; see `to_rgb`.

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

    def encoded(self) -> Path:
        """Return the file."""
        return self.path

    def read(self, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
        """Return the pixels; see `read_image`."""
        return read_image(self.path, size, ranges)


def read_image(file: Path | bytes, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
    """Decode an image to RGB pixels, uint8 [size, size, 3].

    The image is rotated as its EXIF data say, reduced to its first frame, converted to 8-bit RGB (see `to_rgb`),
    center-cropped (see `CENTER_CROP_FRACTION`), and resized to a square without keeping its aspect ratio.

    Args:
        file: an image file, or the content of one.
        size: side of the square in pixels.
        ranges: value ranges of the data set, for images of more than 8 bits per channel; see `to_rgb`.

    Raises:
        UnreadableImageError: the file cannot be decoded, has missing values, or exceeds the limits; the message says
            why.
    """
    stream = open_stream(file)
    try:
        if (len(file) if isinstance(file, bytes) else file.stat().st_size) > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES // 2**20} MiB")
        with Image.open(stream, formats=IMAGE_FORMATS) as image:
            check_pixels(image)
            image.draft("RGB", (size * 2, size * 2))  # JPEG decodes directly to about this size: several times faster
            if (deep := read_deep(image, file)) is not None:
                return to_square(ImageOps.exif_transpose(scale_deep(deep, ranges, image)), size)
            return to_square(ImageOps.exif_transpose(image), size)
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors
        reason = str(error).replace(repr(stream), "among these bytes") if stream is not file else str(error)
        if isinstance(error, UnidentifiedImageError) and first_bytes(file, 4) in TIFF_SIGNATURES:
            reason = "Pillow does not decode TIFFs of this type, such as 64-bit or multi-channel floating point"
        raise UnreadableImageError(f"{type(error).__name__}: {reason}"[:200]) from error


def to_square(image: Image.Image, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
    """Center-crop an image and resize it to RGB pixels, uint8 [size, size, 3].

    Raises:
        UnreadableImageError: it has more than MAX_PIXELS, or missing values.
    """
    check_pixels(image)
    left, top = (1 - CENTER_CROP_FRACTION) / 2 * image.width, (1 - CENTER_CROP_FRACTION) / 2 * image.height
    box = (left, top, image.width - left, image.height - top)
    return np.asarray(to_rgb(image, ranges).resize((size, size), Image.Resampling.BICUBIC, box=box))
