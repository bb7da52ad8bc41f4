"""Range of pixel values that becomes 0..255: one for all images of a data set with more than 8 bits per channel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ValueKind = Literal["integer", "float"]
"""Type of the values of an image with more than 8 bits per channel. Each kind has a range of its own."""
ValueRanges = Mapping[ValueKind, tuple[float, float]]
"""The value that becomes 0 and the value that becomes 255, by kind. Empty if all images have 8 bits."""

NO_RANGES: ValueRanges = {}

OUTLIER_FRACTION = 0.001
"""Fraction of the values that are ignored at each end, first of each image and then of all: hot and dead pixels."""
MIN_VALUES_TO_TRIM = 64
"""Number of values below which none is ignored."""
BIT_DEPTHS = (8, 10, 12, 14, 16)
"""Depths of cameras and scanners, most of which store their values in 16 bits."""
FLOAT_SCALES = (1.0, 255.0)
"""Usual maxima of images in floating point."""
MIN_MAXIMUM, MIN_SPAN = 1 / 4, 1 / 32
"""Fractions of a usual scale that values in floating point must reach and span; otherwise they have another unit."""
MID_GREY = 128


def trim_outliers(values: NDArray[Any]) -> NDArray[Any]:
    """Sort the values of each channel and leave out `OUTLIER_FRACTION` of them at each end, and at least one.

    >>> trim_outliers(np.r_[np.full(99, 7), 60_000]).max()
    np.int64(7)

    Args:
        values: [N] or [N, channels].
    """
    ordered = np.sort(values, axis=0)
    if len(ordered) < MIN_VALUES_TO_TRIM:
        return ordered
    count = math.ceil(OUTLIER_FRACTION * len(ordered))
    return ordered[count:-count]


def estimate_range(samples: Iterable[NDArray[Any]], kind: ValueKind) -> tuple[float, float]:
    """Return the range of a data set's values.

    Outliers are ignored. Integers get the smallest bit depth that holds the rest (8, 10, 12, 14 or 16), from 0. Values
    in floating point get 0..1 or 0..255 if that fits. All others get the minimum and maximum of the rest.

    >>> estimate_range([np.arange(100, 3_000)], "integer")
    (0.0, 4095.0)
    >>> estimate_range([np.linspace(0.1, 0.9, 50)], "float")
    (0.0, 1.0)
    >>> estimate_range([np.linspace(-40, 90, 50)], "float")
    (-40.0, 90.0)

    Args:
        samples: values of each image, [N] or [N, channels]; at least one value in all.
        kind: type of the values.
    """
    values = trim_outliers(np.concatenate([trim_outliers(sample).reshape(-1) for sample in samples]))
    low, high = float(values[0]), float(values[-1])
    if low >= 0 and kind == "integer":
        for depth in BIT_DEPTHS:
            if high <= 2**depth - 1:
                return 0.0, float(2**depth - 1)
    if low >= 0 and kind == "float":
        for scale in FLOAT_SCALES:
            reached = high == 0 or MIN_MAXIMUM * scale <= high <= scale
            if reached and (high == low or high - low >= MIN_SPAN * scale):
                return 0.0, scale
    return low, high


def scale_to_uint8(values: NDArray[Any], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    """Map a range linearly to 0..255. Values outside it are clipped; without any range all become mid-grey.

    >>> scale_to_uint8(np.array([0, 2048, 4095, 65_535]), (0, 4095))
    array([  0, 128, 255, 255], dtype=uint8)
    """
    low, high = value_range
    if high <= low:
        return np.full(values.shape, MID_GREY, dtype=np.uint8)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # a table needs an eighth of the memory
        table = scale_to_uint8(np.arange(2**16, dtype=np.float64), value_range)
        return np.take(table, values)
    scaled = values.astype(np.float64)
    scaled -= low
    scaled *= 255
    scaled /= high - low
    return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)


def ranges_from_json(ranges: Mapping[str, Any]) -> ValueRanges:
    """Return value ranges as stored in pack.json and model.json."""
    kinds: tuple[ValueKind, ...] = ("integer", "float")
    return {kind: (float(ranges[kind][0]), float(ranges[kind][1])) for kind in kinds if kind in ranges}
