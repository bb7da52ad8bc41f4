"""Properties of files that give the class away."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.xfer.data.image_writers import png16_bytes
from xfer.data.image_folder import folder
from xfer.data.inspection import inspect_source
from xfer.data.shortcuts import shortcut_warnings


@pytest.fixture
def noise():
    """A function that returns new random pixels."""
    generator = np.random.default_rng(0)
    return lambda dtype=np.uint8: generator.integers(0, np.iinfo(dtype).max, (24, 24, 3), dtype)


def save_16_bit(path, pixels):
    path.with_suffix(".png").write_bytes(png16_bytes(pixels, 2))


WRITERS = {  # what differs: writers of both classes, and the warning
    "file format": (
        lambda path, noise: Image.fromarray(noise()).save(path.with_suffix(".png")),
        lambda path, noise: Image.fromarray(noise()).save(path.with_suffix(".jpg")),
        "the file format gives the class away: a is PNG (6 of 6 images, 0 of other classes), b is JPEG (6 of 6",
    ),
    "color": (
        lambda path, noise: Image.fromarray(noise()).save(path.with_suffix(".png")),
        lambda path, noise: Image.fromarray(noise()).convert("L").save(path.with_suffix(".png")),
        "the pixel format gives the class away: a is RGB (6 of 6 images, 0 of other classes), b is L",
    ),
    "16-bit grey": (
        lambda path, noise: Image.fromarray(noise()[:, :, 0]).save(path.with_suffix(".png")),
        lambda path, noise: Image.fromarray(noise(np.uint16)[:, :, 0]).save(path.with_suffix(".png")),
        "the pixel format gives the class away: a is L (6 of 6 images, 0 of other classes), b is I;16",
    ),
    "16-bit color": (
        lambda path, noise: Image.fromarray(noise()).save(path.with_suffix(".png")),
        lambda path, noise: save_16_bit(path, noise(np.uint16)),
        "the pixel format gives the class away: a is RGB (6 of 6 images, 0 of other classes), b is RGB;16",
    ),
    "size": (
        lambda path, noise: Image.fromarray(noise()).save(path.with_suffix(".png")),
        lambda path, noise: Image.fromarray(noise()[:20]).save(path.with_suffix(".png")),
        "the image size gives the class away: a is 24 x 24 (6 of 6 images, 0 of other classes), b is 24 x 20",
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_property_that_tells_classes_apart_is_a_warning(tmp_path, noise, kind):
    *writers, expected = WRITERS[kind]
    for name, write in zip("ab", writers, strict=True):
        (tmp_path / name).mkdir()
        for number in range(6):
            write(tmp_path / name / str(number), noise)
    (warning,) = inspect_source(folder(tmp_path)).warnings
    assert warning.startswith(f"WARNING: {expected}")


def test_one_of_many_classes_is_named():
    labels, formats = [0] * 9 + [1] * 9 + [2] * 20, ["JPEG"] * 9 + ["PNG"] * 9 + ["JPEG"] * 20
    (warning,) = shortcut_warnings("abc", labels, {"format": formats})
    assert "away: b is PNG (9 of 9 images, 0 of other classes). A network" in warning


def test_a_few_exceptions_do_not_hide_it():
    labels, formats = [0] * 40 + [1] * 40, ["PNG"] * 39 + ["JPEG"] * 41
    (warning,) = shortcut_warnings("ab", labels, {"format": formats})
    assert "a is PNG (39 of 40 images, 0 of other classes), b is JPEG (40 of 40 images, 1 of other classes)" in warning


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ("aaaaaabbbbbb", "xyxyxyxyxyxy"),
        ("aaaaaabbbbbb", "xxxxxxxxxxxx"),
        ("aaaaaabbbbbb", "abcdefghijkl"),
        ("aaaabbbb", "xxxxyyyy"),
        ("aaaaaaaabbbbbbbb", "xxxxxxyyxxyyyyyy"),
    ],
    ids=["both in both", "one value", "all different", "few images", "a tendency"],
)
def test_other_properties_are_no_warning(labels, values):
    assert shortcut_warnings("ab", ["ab".index(label) for label in labels], {"format": values}) == []
