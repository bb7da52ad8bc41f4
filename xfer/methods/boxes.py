"""Boxes: parts of an image, drawn anew for every image of a batch."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels; wholly inside the image."""


def draw_boxes(
    count: int,
    height: int,
    width: int,
    area_range: tuple[float, float],
    aspect_range: tuple[float, float],
    generator: Generator,
) -> list[Box]:
    """`count` boxes in images of `height` times `width` pixels, at places of equal probability.

    Args:
        count: how many, one an image.
        height: of the images, in pixels.
        width: of the images, in pixels.
        area_range: the smallest and the largest share of the area, in (0, 1]; drawn uniformly between them, then rounded
            to whole pixels, at least one.
        aspect_range: the least and the greatest width by height, where 1 is the aspect of the image itself and must lie
            between them; drawn uniformly on a logarithmic scale.
        generator: where the draws come from.

    >>> draw_boxes(2, 8, 12, area_range=(1.0, 1.0), aspect_range=(0.5, 2.0), generator=Generator())
    [(0, 0, 8, 12), (0, 0, 8, 12)]
    """
    share = area_range[0] + (area_range[1] - area_range[0]) * _uniform(count, generator)
    # The usual way throws away boxes that do not fit, and large ones with them: here the share stays uniform, and the
    # aspect keeps to what fits.
    least = share.clamp(min=aspect_range[0]).log()
    greatest = share.reciprocal().clamp(max=aspect_range[1]).log()
    aspect = torch.exp(least + (greatest - least) * _uniform(count, generator))
    heights = (height * (share / aspect).sqrt()).round().clamp(1, height)
    widths = (width * (share * aspect).sqrt()).round().clamp(1, width)
    tops = ((height - heights + 1) * _uniform(count, generator)).floor()
    lefts = ((width - widths + 1) * _uniform(count, generator)).floor()
    return _boxes(tops, lefts, heights, widths)


def draw_squares(count: int, height: int, width: int, side: int, generator: Generator) -> list[Box]:
    """`count` squares of `side` pixels around any pixel of the image, cut off where they reach over its border."""
    tops = (height * _uniform(count, generator)).floor() - side // 2
    lefts = (width * _uniform(count, generator)).floor() - side // 2
    bottoms, rights = (tops + side).clamp(max=height), (lefts + side).clamp(max=width)
    tops, lefts = tops.clamp(min=0), lefts.clamp(min=0)
    return _boxes(tops, lefts, bottoms - tops, rights - lefts)


def crop_box(image: Tensor, box: Box) -> Tensor:
    """The pixels of the image [..., H, W] in the box, as a view: what is assigned to it changes the image.

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
