"""Decode one image to square uint8 pixels, within limits: files that cannot be photos are not decoded."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from xfer import hashing
from xfer.data.value_ranges import NO_RANGES, ValueKind, ValueRanges, estimate_range, scale_to_uint8

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
NODATA_VALUES = (-9999, -32768, -99999)
"""Values that stand for missing measurements by convention, where no negative value is possible in 8 bits."""
MAX_MAGNITUDE = 1e30
"""Values beyond it are nodata too: the smallest float32, -3.4e38, is a common marker."""
SAMPLE_SIDE = 64
"""Maximum rows and columns of an image that are sampled for the value range."""
NEAR_WHITE, VISIBLE_FRACTION = 32, 0.05
"""Distance from white, of 255, below which ink is invisible on white, and the fraction of the ink that must be farther
for white to be the background."""
BITS_TAG, PHOTOMETRIC_TAG, PLANAR_TAG, SAMPLE_FORMAT_TAG, GDAL_NODATA_TAG = 258, 262, 284, 339, 42113
SEPARATE_PLANES = "separate planes"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
NATIVE_RAW_MODES = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
"""Pillow's names of big-endian layouts, and of the same values in the byte order of this machine."""

EncodedImage = Path | bytes | Image.Image
"""An image file, the content of one, or an image that another library has decoded."""


class UnreadableImageError(ValueError):
    """The file is not an image, is damaged, has missing values, or exceeds the limits above."""


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
    stream = _stream(file)
    try:
        if (len(file) if isinstance(file, bytes) else file.stat().st_size) > MAX_BYTES:
            raise UnreadableImageError(f"larger than {MAX_BYTES // 2**20} MiB")
        with Image.open(stream, formats=IMAGE_FORMATS) as image:
            _check_pixels(image)
            image.draft("RGB", (size * 2, size * 2))  # JPEG decodes directly to about this size: several times faster
            if (deep := _read_deep(image, file)) is not None:
                return to_square(ImageOps.exif_transpose(_deep_to_8_bit(deep, ranges, image)), size)
            return to_square(ImageOps.exif_transpose(image), size)
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many types of errors
        reason = str(error).replace(repr(stream), "among these bytes") if stream is not file else str(error)
        if isinstance(error, UnidentifiedImageError) and _first_bytes(file, 4) in TIFF_SIGNATURES:
            reason = "Pillow does not decode TIFFs of this type, such as 64-bit or multi-channel floating point"
        raise UnreadableImageError(f"{type(error).__name__}: {reason}"[:200]) from error


def to_square(image: Image.Image, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
    """Center-crop an image and resize it to RGB pixels, uint8 [size, size, 3].

    Raises:
        UnreadableImageError: it has more than MAX_PIXELS, or missing values.
    """
    _check_pixels(image)
    left, top = (1 - CENTER_CROP_FRACTION) / 2 * image.width, (1 - CENTER_CROP_FRACTION) / 2 * image.height
    box = (left, top, image.width - left, image.height - top)
    return np.asarray(to_rgb(image, ranges).resize((size, size), Image.Resampling.BICUBIC, box=box))


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
    if (deep := _read_deep(image, None)) is not None:
        image = _deep_to_8_bit(deep, ranges, image)
    if image.has_transparency_data:
        return _composite(image.convert("RGBA"))
    return image.convert("RGB")


def needs_pixel_rules(encoded: EncodedImage | None) -> bool:
    """Return whether an image has more than 8 bits per channel or may be transparent, from its header alone."""
    if encoded is None:
        return False
    if isinstance(encoded, Image.Image):
        return _deep_kind(encoded) is not None or encoded.has_transparency_data
    try:
        if _is_jpeg(encoded):
            return False
        with Image.open(_stream(encoded), formats=IMAGE_FORMATS) as image:
            return _deep_kind(image) is not None or image.has_transparency_data
    except Exception:  # `read_image` reports the error
        return False


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
            deep = _read_deep(encoded, None)
        elif _is_jpeg(encoded):
            return None
        else:
            with Image.open(_stream(encoded), formats=IMAGE_FORMATS) as image:
                _check_pixels(image)
                deep = _read_deep(image, encoded)
    except Exception:  # `read_image` reports the error
        return None
    return None if deep is None else (deep.kind, deep.sample())


@dataclass(frozen=True, slots=True)
class _DeepImage:
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


def _deep_kind(image: Image.Image) -> ValueKind | None:
    """Return the kind of values of an image with more than 8 bits per channel; None for other images."""
    if image.mode == "F":
        return "float"
    if image.mode == "I" or image.mode.startswith("I;16") or _deep_raw_mode(image) or _is_int8(image):
        return "integer"
    return None


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
        return SEPARATE_PLANES  # Pillow garbles these; `_read_deep` refuses them
    arguments = tiles[0].args
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw_mode if isinstance(raw_mode, str) and raw_mode.endswith((";16B", ";16L", ";16N")) else None


def _read_deep(image: Image.Image, file: Path | bytes | None) -> _DeepImage | None:
    """Decode an image with more than 8 bits per channel; return None for other images.

    Args:
        image: the opened image.
        file: the file behind it, which is decoded twice for 16-bit color; None if the image is decoded already.

    Raises:
        UnreadableImageError: it has missing values.
    """
    kind = _deep_kind(image)
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
    return _DeepImage(kind, values, alpha, nodata, white_is_zero=tags.get(PHOTOMETRIC_TAG) == 0 and image.mode != "L")


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
    with Image.open(_stream(file), formats=IMAGE_FORMATS) as image:
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
        raise UnreadableImageError(f"missing values: {count} are NaN, infinite or nodata, such as {example:g}")


def _deep_to_8_bit(deep: _DeepImage, ranges: ValueRanges, original: Image.Image) -> Image.Image:
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


def _stream(file: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(file) if isinstance(file, bytes) else file


def _is_jpeg(file: Path | bytes) -> bool:
    """Return whether a file is a JPEG, which has 8 bits and no transparency: most data sets need no slower check."""
    return _first_bytes(file, 2) == b"\xff\xd8"


def _first_bytes(file: Path | bytes, count: int) -> bytes:
    if isinstance(file, bytes):
        return file[:count]
    with file.open("rb") as stream:
        return stream.read(count)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
