"""Parts of an image: how large, of what shape, where."""

from __future__ import annotations

import math

import pytest
import torch

from xfer.methods.boxes import crop_box, draw_boxes, draw_squares

MANY, HEIGHT, WIDTH = 4000, 300, 400


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("height", "width"), [(HEIGHT, WIDTH), (8, 8), (5, 32), (1, 1)])
@pytest.mark.parametrize(("shares", "aspects"), [((0.5, 1.0), (3 / 4, 4 / 3)), ((0.02, 0.4), (0.3, 1 / 0.3))])
def test_boxes_are_whole_pixels_wholly_inside(height, width, shares, aspects):
    for top, left, tall, wide in draw_boxes(500, height, width, shares, aspects, chance()):
        assert 0 <= top < top + tall <= height
        assert 0 <= left < left + wide <= width


@pytest.mark.parametrize("shares", [(0.5, 1.0), (0.02, 0.4), (0.7, 0.7)])
def test_the_share_of_the_area_is_uniform_between_its_bounds(shares):
    boxes = draw_boxes(MANY, HEIGHT, WIDTH, shares, (0.3, 1 / 0.3), chance())
    found = torch.tensor([tall * wide / (HEIGHT * WIDTH) for *_, tall, wide in boxes]).sort().values
    expected = torch.linspace(*shares, MANY)
    assert (found - expected).abs().max() < 0.02  # Kolmogorov-Smirnov allows 0.01, rounding to pixels the rest


def test_the_aspect_ratio_keeps_its_bounds_and_is_as_often_tall_as_wide():
    boxes = draw_boxes(MANY, HEIGHT, WIDTH, (0.1, 0.5), (3 / 4, 4 / 3), chance())
    aspects = torch.tensor([math.log(wide / WIDTH * HEIGHT / tall) for *_, tall, wide in boxes])
    assert aspects.abs().max() < math.log(4 / 3) + 0.02
    assert aspects.abs().max() > math.log(4 / 3) - 0.02
    assert abs(aspects.mean()) < 0.02
    assert aspects.std() == pytest.approx(math.log(4 / 3) / math.sqrt(3), rel=0.05)  # uniform in the logarithm


def test_large_boxes_keep_to_the_aspect_ratios_that_fit():
    boxes = draw_boxes(MANY, 200, 200, (0.9, 0.9), (0.1, 10.0), chance())
    assert {200} < {tall for *_, tall, _ in boxes} <= set(range(180, 201))
    assert {200} < {wide for *_, wide in boxes} <= set(range(180, 201))


def test_every_place_that_fits_is_drawn_alike():
    boxes = draw_boxes(MANY, 4, 8, (0.25, 0.25), (1.0, 1.0), chance())  # 2 times 4 pixels
    tops = torch.tensor([top for top, *_ in boxes]).bincount(minlength=3) / MANY
    lefts = torch.tensor([left for _, left, *_ in boxes]).bincount(minlength=5) / MANY
    torch.testing.assert_close(tops, torch.full((3,), 1 / 3), atol=0.03, rtol=0)
    torch.testing.assert_close(lefts, torch.full((5,), 1 / 5), atol=0.03, rtol=0)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_a_square_has_its_size_wherever_it_does_not_reach_over_the_border(side):
    squares = draw_squares(500, 16, 24, side, chance())
    free = [(tall, wide) for top, left, tall, wide in squares if 0 < top < 16 - tall and 0 < left < 24 - wide]
    assert len(free) > 100
    assert set(free) == {(side, side)}
    assert all(tall * wide > 0 and top + tall <= 16 and left + wide <= 24 for top, left, tall, wide in squares)


def test_a_square_is_centred_on_every_pixel_alike_and_cut_off_at_the_border():
    squares = draw_squares(MANY, 6, 6, 3, chance())
    assert {tall for *_, tall, _ in squares} == {2, 3}
    centres = torch.tensor([top + 1 if tall == 3 or top else 0 for top, _, tall, _ in squares]).bincount() / MANY
    torch.testing.assert_close(centres, torch.full((6,), 1 / 6), atol=0.03, rtol=0)


def test_what_is_assigned_inside_changes_only_the_box():
    image = torch.zeros(3, 5, 6)
    crop_box(image, (1, 2, 3, 4))[:] = 1
    assert image[:, 1:4, 2:6].all()
    assert image.sum() == 3 * 3 * 4


def test_the_same_generator_draws_the_same_and_the_global_one_has_no_part():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second = (draw_boxes(9, 32, 32, (0.1, 1.0), (0.5, 2.0), chance(3)) for _ in range(2))
    assert first == second != draw_boxes(9, 32, 32, (0.1, 1.0), (0.5, 2.0), chance(4))
    assert torch.equal(torch.get_rng_state(), before)
