"""The figures: well-formed, the same every time, and drawn from whatever there is."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.reporting.figures import pareto_front, report_figures, spread_labels
from sweeps.reporting.plot_style import INK, assign_strategy_styles, inline_svg
from sweeps.reporting.results import Results
from tests.reporting.conftest import a_record, results_of, some_finals
from xfer.records import Record, Status

STATUSES: tuple[Status, ...] = ("finished", "pruned", "failed")
STRANGE = "<script>$x_1$ & --> \x1b[31m\u202e\ud800"


def test_there_are_four_figures_and_each_is_well_formed(opened: Results) -> None:
    drawn = report_figures(opened)
    assert [drawing.name for drawing in drawn] == ["strategies", "finalists", "learning_curves", "cost"]
    for drawing in drawn:
        assert ElementTree.fromstring(drawing.svg).tag.endswith("svg")


def test_the_same_results_give_the_same_bytes(opened: Results) -> None:
    assert report_figures(opened) == report_figures(opened)
    assert "<dc:date>" not in report_figures(opened)[0].svg


@pytest.mark.parametrize(
    "records",
    [
        [a_record("0000", (0.5,), seconds=0.0)],
        [a_record("0000", (0.5,), "pruned"), a_record("0001", (), "failed")],
        [a_record("0000", (0.5, math.nan, 0.7))],
        [a_record(f"{i:04d}", (0.5, 0.5 + i / 90), STATUSES[i % 3], strategy=f"way_{i % 11}") for i in range(40)],
    ],
    ids=["one trial of one epoch", "none finished", "a gap in a curve", "forty trials of eleven strategies"],
)
def test_figures_are_drawn_from_what_there_is(records: list[Record]) -> None:
    drawn = report_figures(results_of(records))
    assert [drawing.name for drawing in drawn] == ["strategies", "learning_curves", "cost"]
    for drawing in drawn:
        ElementTree.fromstring(drawing.svg)


def test_before_the_first_epoch_there_is_nothing_to_draw() -> None:
    assert report_figures(results_of([])) == []
    assert report_figures(results_of([a_record("0000", (), "failed")])) == []


def test_names_in_a_figure_stay_text() -> None:
    for drawing in report_figures(results_of([a_record("0000", strategy=STRANGE), *some_finals("0000", 0.9)])):
        root = ElementTree.fromstring(drawing.svg)
        assert not any(element.tag.endswith("script") for element in root.iter())
        assert "\x1b" not in drawing.svg
        assert "\u202e" not in drawing.svg
        drawing.svg.encode()


def test_figures_in_a_page_take_its_colours_and_share_no_name(opened: Results) -> None:
    pages = [inline_svg(drawing.svg) for drawing in report_figures(opened)]
    assert all(page.startswith("<svg") and INK not in page and "var(--ink)" in page for page in pages)
    ids = [element.get("id") for page in pages for element in ElementTree.fromstring(page).iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_a_strategy_looks_the_same_wherever_it_stands() -> None:
    looks = assign_strategy_styles(["naive", "clip", "naive"])
    assert looks == assign_strategy_styles(["clip", "naive"])
    assert len(set(assign_strategy_styles(f"way_{i}" for i in range(40)).values())) == 40


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=20))
def test_no_point_beats_one_on_the_front(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    assert bool(front) == bool(points)
    for cost, value in front:
        assert not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted))
def test_labels_stand_apart_and_in_order(places: list[float]) -> None:
    moved = spread_labels(places, gap=0.1)
    assert len(moved) == len(places)
    assert all(above - below >= 0.1 - 1e-9 for below, above in pairwise(moved))
