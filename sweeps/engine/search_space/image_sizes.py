"""Image sizes that compete in one sweep, as `--vary image_size=96,128,160` lists them."""

from __future__ import annotations

from collections.abc import Mapping

AXIS = "image_size"
"""Name of the axis. It only exists in sweeps of several sizes."""

SIZE_LIMITS = (8, 2_048)
"""Smallest and largest side of an image in pixels."""


def resolve_image_sizes(image_size: int | None, edits: Mapping[str, str]) -> tuple[int | None, dict[str, str]]:
    """Return the image size to begin with, and edits that name image sizes only if several compete.

    >>> resolve_image_sizes(128, {"image_size": "96,128,160", "optimizer": "adam"})
    (128, {'optimizer': 'adam', 'image_size': '128,96,160'})
    >>> resolve_image_sizes(None, {"image_size": "96"})
    (96, {})

    Args:
        image_size: as `--image-size` or the experiment's page set it; None for the first of the list.
        edits: values of axes, as `--vary` and `--fix` write them.

    Raises:
        ValueError: the list cannot be parsed, or lacks `image_size`.
    """
    if AXIS not in edits:
        return image_size, dict(edits)
    sizes = parse_image_sizes(edits[AXIS])
    first = sizes[0] if image_size is None else image_size
    if first not in sizes:
        raise ValueError(
            f"{AXIS}={edits[AXIS]} lacks {image_size}, the image size of this experiment: add it to the list, or "
            f"choose another to begin with, as in --image-size {sizes[0]}"
        )
    ordered = ",".join(map(str, dict.fromkeys((first, *sizes))))
    return first, {
        **{axis: text for axis, text in edits.items() if axis != AXIS},
        **({AXIS: ordered} if len(sizes) > 1 else {}),
    }


def parse_image_sizes(text: str) -> tuple[int, ...]:
    """Parse sizes separated by commas, without repetitions.

    Raises:
        ValueError: the text has another form, or a size is outside the limits.
    """
    if ".." in text:
        raise ValueError(f"{AXIS}={text}: every size takes a pack of its own, so list them, as in {AXIS}=96,128,160")
    sizes: list[int] = []
    for part in map(str.strip, text.split(",")):
        if not part.isdecimal():
            raise ValueError(f"{AXIS}={text}: must be integers separated by commas, got {part!r}")
        low, high = SIZE_LIMITS
        if not low <= int(part) <= high:
            raise ValueError(f"{AXIS}={part}: must be between {low} and {high}")
        sizes.append(int(part))
    return tuple(dict.fromkeys(sizes))


def shrink_image_sizes(text: str, largest: int) -> str:
    """Scale a list of sizes down to a largest one, in multiples of 8 pixels.

    >>> shrink_image_sizes("96,128,160", 64), shrink_image_sizes("32,64", 64)
    ('40,48,64', '32,64')
    """
    sizes = parse_image_sizes(text)
    scale = min(1.0, largest / max(sizes))
    shrunk = sizes if scale == 1 else tuple(max(SIZE_LIMITS[0], round(scale * size / 8) * 8) for size in sizes)
    return ",".join(map(str, dict.fromkeys(shrunk)))
