"""Rules that convert an image of any type to 8-bit RGB, the same for all images of a data set."""

from __future__ import annotations

import numpy as np
from PIL import Image

from xfer.data.deep_images import DeepImage, deep_kind, read_deep
from xfer.data.image_formats import IMAGE_FORMATS, EncodedImage, is_jpeg, open_stream
from xfer.data.value_ranges import NO_RANGES, ValueRanges, estimate_range, scale_to_uint8

NEAR_WHITE, VISIBLE_FRACTION = 32, 0.05
"""Distance from white, of 255, below which ink is invisible on white, and the fraction of the ink that must be farther
for white to be the background."""


def to_rgb(image: Image.Image, ranges: ValueRanges = NO_RANGES) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    Values of more than 8 bits are scaled from the range of their kind to 0..255, the same for all images of a data set.
    Transparent images are composited on white, or on black if their ink is near white (see `NEAR_WHITE`).

    Args:
        image: a decoded image.
        ranges: value ranges of the data set. For a kind that it lacks, the range is that of this image alone.

    Raises:
        UnreadableImageError: it has missing values.
    """
    if (deep := read_deep(image, None)) is not None:
        image = scale_deep(deep, ranges, image)
    if image.has_transparency_data:
        return _composite(image.convert("RGBA"))
    return image.convert("RGB")


def needs_pixel_rules(encoded: EncodedImage | None) -> bool:
    """Return whether an image has more than 8 bits per channel or may be transparent, from its header alone."""
    if encoded is None:
        return False
    if isinstance(encoded, Image.Image):
        return deep_kind(encoded) is not None or encoded.has_transparency_data
    try:
        if is_jpeg(encoded):
            return False
        with Image.open(open_stream(encoded), formats=IMAGE_FORMATS) as image:
            return deep_kind(image) is not None or image.has_transparency_data
    except Exception:  # `read_image` reports the error
        return False


def scale_deep(deep: DeepImage, ranges: ValueRanges, original: Image.Image) -> Image.Image:
    """Scale the values to 8 bits: an image of mode L, LA, RGB or RGBA with the orientation of the original."""
    value_range = ranges[deep.kind] if deep.kind in ranges else estimate_range([deep.sample()], deep.kind)
    pixels = scale_to_uint8(deep.values, value_range)
    image = Image.fromarray(255 - pixels if deep.white_is_zero else pixels)
    if deep.alpha is not None:
        image.putalpha(Image.fromarray(deep.alpha))
    exif = Image.Exif()
    exif[0x0112] = original.getexif().get(0x0112, 1)
    image.info["exif"] = exif.tobytes()
    return image


def _composite(image: Image.Image) -> Image.Image:
    """Blend an RGBA image with white, or with black if its ink would be invisible on white."""
    pixels = np.asarray(image)
    alpha = pixels[:, :, 3]
    if alpha.min() == 255:
        return image.convert("RGB")
    visible = pixels[:, :, :3].min(axis=2) <= 255 - NEAR_WHITE
    ink = alpha.sum(dtype=np.int64)
    white = ink == 0 or alpha.sum(where=visible, dtype=np.int64) >= VISIBLE_FRACTION * ink
    background = Image.new("RGBA", image.size, "white" if white else "black")
    return Image.alpha_composite(background, image).convert("RGB")
