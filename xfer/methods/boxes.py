"""Random boxes within images, drawn separately for every image of a batch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels; entirely inside the image."""


def draw_boxes(
    count: int,
    height: int,
    width: int,
    area_range: tuple[float, float],
    aspect_range: tuple[float, float],
    generator: Generator,
) -> list[Box]:
    """Draws one box per image, at uniformly distributed positions.

    >>> draw_boxes(2, 8, 12, area_range=(1.0, 1.0), aspect_range=(0.5, 2.0), generator=Generator())
    [(0, 0, 8, 12), (0, 0, 8, 12)]

    Args:
        count: number of boxes, one per image.
        height: of the images, in pixels.
        width: of the images, in pixels.
        area_range: smallest and largest fraction of the image's area, in (0, 1]. The fraction is uniform between them,
            then rounded to whole pixels, at least one.
        aspect_range: smallest and largest width / height relative to the image's own aspect ratio; must include 1.
            Drawn uniformly on a logarithmic scale.
        generator: source of the random numbers.

    Returns:
        `count` boxes inside the images.
    """
    area = area_range[0] + (area_range[1] - area_range[0]) * _uniform(count, generator)
    # Rejection sampling discards boxes that do not fit, mostly large ones. Here the area stays uniform, and the aspect
    # is limited to what fits.
    lowest = area.clamp(min=aspect_range[0]).log()
    highest = area.reciprocal().clamp(max=aspect_range[1]).log()
    aspect = torch.exp(lowest + (highest - lowest) * _uniform(count, generator))
    heights = (height * (area / aspect).sqrt()).round().clamp(1, height)
    widths = (width * (area * aspect).sqrt()).round().clamp(1, width)
    tops = ((height - heights + 1) * _uniform(count, generator)).floor()
    lefts = ((width - widths + 1) * _uniform(count, generator)).floor()
    return _boxes(tops, lefts, heights, widths)


def draw_squares(count: int, height: int, width: int, side: int, generator: Generator) -> list[Box]:
    """Draws one square per image, centred on a uniformly chosen pixel and clipped at the border.

    Args:
        count: number of squares.
        height: of the images, in pixels.
        width: of the images, in pixels.
        side: of the squares, in pixels.
        generator: source of the random numbers.
    """
    tops = (height * _uniform(count, generator)).floor() - side // 2
    lefts = (width * _uniform(count, generator)).floor() - side // 2
    bottoms, rights = (tops + side).clamp(max=height), (lefts + side).clamp(max=width)
    tops, lefts = tops.clamp(min=0), lefts.clamp(min=0)
    return _boxes(tops, lefts, bottoms - tops, rights - lefts)


def crop_box(image: Tensor, box: Box) -> Tensor:
    """Returns a view of the box's pixels in an image [..., H, W]; assigning to it changes the image.

    >>> crop_box(torch.arange(6).reshape(2, 3), (0, 1, 2, 2)).tolist()
    [[1, 2], [4, 5]]
    """
    top, left, height, width = box
    return image[..., top : top + height, left : left + width]


def _uniform(count: int, generator: Generator) -> Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _boxes(tops: Tensor, lefts: Tensor, heights: Tensor, widths: Tensor) -> list[Box]:
    rows: list[list[int]] = torch.stack([tops, lefts, heights, widths], dim=1).long().tolist()
    return [(top, left, height, width) for top, left, height, width in rows]
