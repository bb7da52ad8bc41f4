"""Photos of a report: images of the prepared data as small JPEG files."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfer.data.pack import Pack

PHOTO_SIDE = 160
"""Maximum side of a photo in pixels; smaller images are enlarged by a whole factor up to it."""
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Photo:
    """An image of the data with a caption."""

    name: str
    """File name without its suffix."""
    lines: tuple[str, ...]
    """Lines of the caption, plain text that is safe to print."""
    jpeg: bytes

    @property
    def caption(self) -> str:
        """The caption in one line."""
        return "; ".join(self.lines)

    @property
    def data_uri(self) -> str:
        """The photo as an address that needs no file."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


@dataclass(frozen=True)
class PhotoRow:
    """Photos that illustrate one thing."""

    title: str
    photos: tuple[Photo, ...]


def photo_of(pack: Pack, index: int, name: str, *lines: str) -> Photo:
    """Return an image of a pack as a photo whose last line has the first digits of its content hash.

    Args:
        pack: the prepared data.
        index: index of the image in the pack.
        name: file name without its suffix.
        lines: of the caption.
    """
    return Photo(name, (*lines, pack.digests[index][:12]), encode_jpeg(pack.images[index]))


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode RGB pixels [H, W, 3] as a JPEG of at most `PHOTO_SIDE` pixels a side."""
    image = Image.fromarray(np.asarray(pixels))
    factor = PHOTO_SIDE // max(image.size)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
