"""Transparency: ink stays visible, whatever its color."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.xfer.data.image_writers import BLUE, GREY, WHITE, assert_colour, png16_bytes, save
from xfer.data.images import read_image


def icon(ink, mode="RGBA"):
    """A square of ink in the middle of a transparent image."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((*ink, 255), (24, 24, 40, 40))
    if mode == "P":
        palette = Image.new("P", image.size, 0)
        palette.putpalette([*BLUE, *ink])
        palette.paste(1, (24, 24, 40, 40))
        palette.info["transparency"] = 0
        return palette
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(
    ("ink", "background"), [(WHITE, 0), ((240, 240, 240), 0), (GREY, 255), ((0, 0, 0), 255), ((200, 200, 200), 255)]
)
def test_ink_on_transparency_stays_visible(tmp_path, mode, ink, background):
    pixels = read_image(save(icon(ink, mode), tmp_path / "a.png"), 64)
    assert_colour(pixels[:8], (background,) * 3)
    assert_colour(pixels[28:36, 28:36], ink)


def test_white_ink_with_a_soft_edge_is_composited_on_black(tmp_path):
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.putalpha(Image.linear_gradient("L").resize((64, 64)))
    pixels = read_image(save(image, tmp_path / "a.png"), 64)
    assert pixels[0].max() < 30
    assert pixels[-1].min() > 225


def test_a_white_shape_with_dark_parts_keeps_a_white_background(tmp_path):
    image = icon(WHITE)
    image.paste((0, 0, 0, 255), (24, 24, 40, 28))  # a quarter of the ink
    assert_colour(read_image(save(image, tmp_path / "a.png"), 64)[:8], WHITE)


@pytest.mark.parametrize(
    "content",
    [
        png16_bytes(np.dstack([np.full((40, 40), 65_535, np.uint16), np.eye(40, dtype=np.uint16) * 65_535]), 4),
        png16_bytes(np.where(np.eye(40), 65_535, 7).astype(np.uint16), 0, transparent=(7,)),
        png16_bytes(np.dstack([np.where(np.eye(40), 65_535, 7)] * 3).astype(np.uint16), 2, transparent=(7, 7, 7)),
    ],
    ids=["grey and alpha", "transparent grey", "transparent color"],
)
def test_white_ink_of_16_bits_stays_visible(content):
    pixels = read_image(content, 40)
    assert pixels.min() == 0
    assert pixels.max() > 200
