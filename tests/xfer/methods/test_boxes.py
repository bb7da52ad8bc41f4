"""Random boxes: size, shape and position."""

from __future__ import annotations

import math

import pytest
import torch

from xfer.methods.boxes import crop_box, draw_boxes, draw_squares

MANY, HEIGHT, WIDTH = 4000, 300, 400


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (8, 8), (5, 32), (1, 1)])
@pytest.mark.parametrize(("areas", "aspects"), [((0.5, 1.0), (3 / 4, 4 / 3)), ((0.02, 0.4), (0.3, 1 / 0.3))])
def test_boxes_are_inside_the_image_and_at_least_one_pixel_large(height, width, areas, aspects):
    for top, left, tall, wide in draw_boxes(500, height, width, areas, aspects, seeded()):
        assert 0 <= top < top + tall <= height
        assert 0 <= left < left + wide <= width


@pytest.mark.parametrize("areas", [(0.5, 1.0), (0.02, 0.4), (0.7, 0.7)])
def test_the_area_fraction_is_uniform_between_its_bounds(areas):
    boxes = draw_boxes(MANY, HEIGHT, WIDTH, areas, (0.3, 1 / 0.3), seeded())
    fractions = torch.tensor([tall * wide / (HEIGHT * WIDTH) for *_, tall, wide in boxes]).sort().values
    expected = torch.linspace(*areas, MANY)
    assert (fractions - expected).abs().max() < 0.02  # Kolmogorov-Smirnov allows 0.01, rounding to pixels the rest


def test_the_aspect_ratio_stays_within_its_bounds_and_is_symmetric():
    boxes = draw_boxes(MANY, HEIGHT, WIDTH, (0.1, 0.5), (3 / 4, 4 / 3), seeded())
    aspects = torch.tensor([math.log(wide / WIDTH * HEIGHT / tall) for *_, tall, wide in boxes])
    assert aspects.abs().max() < math.log(4 / 3) + 0.02
    assert aspects.abs().max() > math.log(4 / 3) - 0.02
    assert abs(aspects.mean()) < 0.02
    assert aspects.std() == pytest.approx(math.log(4 / 3) / math.sqrt(3), rel=0.05)  # uniform in the logarithm


def test_large_boxes_use_only_aspect_ratios_that_fit():
    boxes = draw_boxes(MANY, 200, 200, (0.9, 0.9), (0.1, 10.0), seeded())
    assert {200} < {tall for *_, tall, _ in boxes} <= set(range(180, 201))
    assert {200} < {wide for *_, wide in boxes} <= set(range(180, 201))


def test_every_position_that_fits_is_equally_likely():
    boxes = draw_boxes(MANY, 4, 8, (0.25, 0.25), (1.0, 1.0), seeded())  # 2 times 4 pixels
    tops = torch.tensor([top for top, *_ in boxes]).bincount(minlength=3) / MANY
    lefts = torch.tensor([left for _, left, *_ in boxes]).bincount(minlength=5) / MANY
    torch.testing.assert_close(tops, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    torch.testing.assert_close(lefts, torch.full((5,), 1 / 5), atol=0.03, rtol=0)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_a_square_away_from_the_border_has_its_full_size(side):
    squares = draw_squares(500, 16, 24, side, seeded())
    free = [(tall, wide) for top, left, tall, wide in squares if 0 < top < 16 - tall and 0 < left < 24 - wide]
    assert len(free) > 100
    assert set(free) == {(side, side)}
    assert all(tall * wide > 0 and top + tall <= 16 and left + wide <= 24 for top, left, tall, wide in squares)


def test_squares_are_centred_uniformly_and_clipped_at_the_border():
    squares = draw_squares(MANY, 6, 6, 3, seeded())
    assert {tall for *_, tall, _ in squares} == {2, 3}
    centres = torch.tensor([top + 1 if tall == 3 or top else 0 for top, _, tall, _ in squares]).bincount() / MANY
    torch.testing.assert_close(centres, torch.full((6,), 1 / 6), atol=0.03, rtol=0)


def test_assigning_to_a_crop_changes_only_the_box():
    image = torch.zeros(3, 5, 6)
    crop_box(image, (1, 2, 3, 4))[:] = 1
    assert image[:, 1:4, 2:6].all()
    assert image.sum() == 3 * 3 * 4


def test_boxes_depend_only_on_the_given_generator():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second = (draw_boxes(9, 32, 32, (0.1, 1.0), (0.5, 2.0), seeded(3)) for _ in range(2))
    assert first == second != draw_boxes(9, 32, 32, (0.1, 1.0), (0.5, 2.0), seeded(4))
    assert torch.equal(torch.get_rng_state(), before)
