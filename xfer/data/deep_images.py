"""Decode images of more than 8 bits per channel to their values, and find missing values among them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from xfer.data.image_formats import (
    IMAGE_FORMATS,
    EncodedImage,
    UnreadableImageError,
    check_pixels,
    is_jpeg,
    open_stream,
)
from xfer.data.value_ranges import ValueKind

NODATA_VALUES = (-9999, -32768, -99999)
"""Values that stand for missing measurements by convention, where no negative value is possible in 8 bits."""
MAX_MAGNITUDE = 1e30
"""Values beyond it are nodata too: the smallest float32, -3.4e38, is a common marker."""
MISSING_VALUES = "missing values"
"""Start of the reason why an image with such values is not read."""
SAMPLE_SIDE = 64
"""Maximum rows and columns of an image that are sampled for the value range."""
BITS_TAG, PHOTOMETRIC_TAG, PLANAR_TAG, SAMPLE_FORMAT_TAG, GDAL_NODATA_TAG = 258, 262, 284, 339, 42113
SEPARATE_PLANES = "separate planes"
NATIVE_RAW_MODES = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
"""Pillow's names of big-endian layouts, and of the same values in the byte order of this machine."""


@dataclass(frozen=True, slots=True)
class DeepImage:
    """Decoded values of an image with more than 8 bits per channel."""

    kind: ValueKind
    values: NDArray[Any]
    """[H, W] or [H, W, 3]."""
    alpha: NDArray[np.uint8] | None = None
    """[H, W], if the image is transparent."""
    nodata: float | None = None
    """Value that the file declares as missing."""
    white_is_zero: bool = False

    def sample(self) -> NDArray[Any]:
        """Return a regular sample of the pixels, [N, channels], without nodata unless nothing else is there."""
        height, width = self.values.shape[:2]
        sample = self.values[:: -(-height // SAMPLE_SIDE), :: -(-width // SAMPLE_SIDE)]
        pixels = sample.reshape(-1, 1 if sample.ndim == 2 else sample.shape[2])
        measured = pixels if self.nodata is None else pixels[(pixels != np.float64(self.nodata)).any(axis=1)]
        return measured if len(measured) else pixels


def deep_kind(image: Image.Image) -> ValueKind | None:
    """Return the kind of values of an image with more than 8 bits per channel; None for other images."""
    if image.mode == "F":
        return "float"
    if image.mode == "I" or image.mode.startswith("I;16") or _deep_raw_mode(image) or _is_int8(image):
        return "integer"
    return None


def pixel_mode(image: Image.Image) -> str:
    """Return Pillow's mode of an image, with the number of bits for 16-bit color: RGB;16."""
    return f"{image.mode};16" if image.mode in ("RGB", "RGBA") and deep_kind(image) else image.mode


def sample_values(encoded: EncodedImage | None) -> tuple[ValueKind, NDArray[Any]] | None:
    """Return the kind of an image's values, and a regular sample of its pixels.

    Returns:
        Kind, and values [N, channels] of at most `SAMPLE_SIDE` rows and columns. None if the image has 8 bits per
        channel, or cannot be read.
    """
    if encoded is None:
        return None
    try:
        if isinstance(encoded, Image.Image):
            deep = read_deep(encoded, None)
        elif is_jpeg(encoded):
            return None
        else:
            with Image.open(open_stream(encoded), formats=IMAGE_FORMATS) as image:
                check_pixels(image)
                deep = read_deep(image, encoded)
    except Exception:  # `read_image` reports the error
        return None
    return None if deep is None else (deep.kind, deep.sample())


def read_deep(image: Image.Image, file: Path | bytes | None) -> DeepImage | None:
    """Decode an image with more than 8 bits per channel; return None for other images.

    Args:
        image: the opened image.
        file: the file behind it, which is decoded twice for 16-bit color; None if the image is decoded already.

    Raises:
        UnreadableImageError: it has missing values.
    """
    kind = deep_kind(image)
    if kind is None or (file is None and image.mode in ("RGB", "RGBA")):
        return None
    tags, raw_mode = _tags(image), _deep_raw_mode(image)
    if tags.get(PLANAR_TAG) == 2 and (image.mode != "F" or tags.prefix == b"MM"):
        raise UnreadableImageError("16-bit TIFFs in separate planes are not supported: save the channels interleaved")
    transparent, alpha = image.info.get("transparency"), None
    values: NDArray[Any]
    if raw_mode and file is not None:
        values, alpha = _decode_16_bit_color(image, raw_mode, file)
    elif file is not None and _is_pnm(image):
        values = _decode_pnm(image, file)[:, :, 0]  # Pillow would scale it from the maximum in its header
    else:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            image.tile = [_in_native_order(tile) for tile in image.tile]
        values = np.asarray(image)
        if image.mode == "I" and tags.get(BITS_TAG) == (32,) and tags.get(SAMPLE_FORMAT_TAG, (1,)) == (1,):
            values = values.view(np.uint32)
        elif _is_int8(image):
            values = values.view(np.int8)
    if alpha is None and isinstance(transparent, int | tuple):
        opaque = values != np.array(transparent)
        alpha = np.where(opaque if values.ndim == 2 else opaque.any(axis=2), 255, 0).astype(np.uint8)
    nodata = _declared_nodata(tags)
    _check_values(values, kind, nodata)
    return DeepImage(kind, values, alpha, nodata, white_is_zero=tags.get(PHOTOMETRIC_TAG) == 0 and image.mode != "L")


def _tags(image: Image.Image) -> Any:
    """Return the tags of a TIFF image by number; an empty mapping for other formats."""
    return image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}


def _is_int8(image: Image.Image) -> bool:
    """Return whether a TIFF holds signed bytes, which Pillow decodes as unsigned ones."""
    return image.mode == "L" and _tags(image).get(SAMPLE_FORMAT_TAG) == (2,)


def _deep_raw_mode(image: Image.Image) -> str | None:
    """Return the layout of 16-bit color channels, of which Pillow keeps the upper 8 bits; None for other images."""
    tiles: Any = getattr(image, "tile", None)
    if not tiles or image.mode not in ("RGB", "RGBA"):
        return None
    if _is_pnm(image):
        return "ppm"
    if _tags(image).get(PLANAR_TAG) == 2 and 16 in _tags(image).get(BITS_TAG, ()):
        return SEPARATE_PLANES  # Pillow garbles these; `read_deep` refuses them
    arguments = tiles[0].args
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) and raw_mode.endswith((";16B", ";16L", ";16N")) else None


def _decode_16_bit_color(
    image: Any, raw_mode: str, file: Path | bytes
) -> tuple[NDArray[np.uint16], NDArray[np.uint8] | None]:
    """Decode all 16 bits of color channels to uint16 [H, W, 3], or [H, W] for grey, and alpha if there is any.

    Pillow decodes such channels to their upper 8 bits. In the opposite byte order it decodes the lower ones.

    Args:
        image: the opened file.
        raw_mode: layout of its pixels, from `_deep_raw_mode`.
        file: the file, which is opened twice more.
    """
    if raw_mode == "ppm":
        return _decode_pnm(image, file), None
    if raw_mode == "LA;16B":
        grey_alpha = _decode_as(file, "RGBA")  # four bytes per pixel: the two of grey, then the two of alpha
        return _join_bytes(grey_alpha[:, :, 0], grey_alpha[:, :, 1]), grey_alpha[:, :, 2]
    layout, _, order = raw_mode.partition(";")
    premultiplied = layout == "RGBa"
    layout = "RGBA" if premultiplied else layout
    opposite = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}[order]
    upper, lower = _decode_as(file, f"{layout};{order}"), _decode_as(file, f"{layout};{opposite}")
    values = _join_bytes(upper, lower)
    if layout != "RGBA":
        return values, None
    colors, alpha = values[:, :, :3], values[:, :, 3:]
    if premultiplied:
        straight = colors.astype(np.float64) * 65_535 / np.maximum(alpha, 1)
        colors = np.minimum(straight, 65_535).round().astype(np.uint16)
    return colors, upper[:, :, 3]


def _join_bytes(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return np.left_shift(upper, 8, dtype=np.uint16) | lower


def _decode_as(file: Path | bytes, raw_mode: str) -> NDArray[np.uint8]:
    """Decode a file as if its pixels were stored in another layout of the same size."""
    image: Any  # a subclass with `tile`
    with Image.open(open_stream(file), formats=IMAGE_FORMATS) as image:
        image.tile = [
            tile._replace(args=raw_mode if isinstance(tile.args, str) else (raw_mode, *tile.args[1:]))
            for tile in image.tile
        ]
        return np.asarray(image)


def _in_native_order(tile: Any) -> Any:
    """Correct the layout of a compressed TIFF tile: libtiff returns native byte order, and Pillow 13 swaps it again."""
    raw_mode = tile.args[0] if isinstance(tile.args, tuple) else tile.args
    if tile.codec_name != "libtiff" or raw_mode not in NATIVE_RAW_MODES:
        return tile
    return tile._replace(args=(NATIVE_RAW_MODES[raw_mode], *tile.args[1:]))


def _is_pnm(image: Image.Image) -> bool:
    """Return whether an image is a binary PGM or PPM file whose values Pillow scales from its declared maximum."""
    tiles: Any = getattr(image, "tile", None)
    return bool(tiles) and tiles[0].codec_name == "ppm" and tiles[0].args[-1] > 255


def _decode_pnm(image: Any, file: Path | bytes) -> NDArray[np.uint16]:
    """Decode a binary PGM or PPM file of 16 bits to uint16 [H, W, channels]."""
    channels = 1 if image.mode == "I" else 3
    count, offset = image.width * image.height * channels, image.tile[0].offset
    content = file if isinstance(file, bytes) else file.read_bytes()
    values = np.frombuffer(content, dtype=">u2", count=count, offset=offset)
    return values.astype(np.uint16).reshape(image.height, image.width, channels)


def _declared_nodata(tags: Any) -> float | None:
    try:
        return float(str(tags[GDAL_NODATA_TAG]).strip("\0 "))
    except (KeyError, ValueError):
        return None


def _check_values(values: NDArray[Any], kind: ValueKind, nodata: float | None) -> None:
    if values.dtype.kind == "u":
        return  # every value can be a measurement
    missing = np.isin(values, NODATA_VALUES)
    with np.errstate(all="ignore"):
        if kind == "float":
            missing |= ~(np.abs(values) < MAX_MAGNITUDE)
        if nodata is not None and (kind == "float" or nodata < 0):
            missing |= values == np.array(nodata).astype(values.dtype)
    if missing.any():
        count = f"{int(missing.sum()):,} of {missing.size:,} values"
        example = values[missing][0]
        raise UnreadableImageError(f"{MISSING_VALUES}: {count} are NaN, infinite or nodata, such as {example:g}")
