"""Writers of images that Pillow reads but cannot write, and checks of pixels."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def plain(mode, colour, size=(40, 40)):
    return Image.new(mode, size, colour)


def save(image, path, **options):
    image.save(path, **options)
    return path


def assert_colour(pixels, colour, within=3):
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.reshape(-1, 3).astype(int) - colour).max() <= within


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
