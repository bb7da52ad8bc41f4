"""The figures are well-formed and deterministic, and are drawn at every stage of a sweep."""

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
    figures = report_figures(opened)
    assert [figure.name for figure in figures] == ["strategies", "finalists", "learning_curves", "cost"]
    for figure in figures:
        assert ElementTree.fromstring(figure.svg).tag.endswith("svg")


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
def test_figures_are_drawn_at_every_stage(records: list[Record]) -> None:
    figures = report_figures(results_of(records))
    assert [figure.name for figure in figures] == ["strategies", "learning_curves", "cost"]
    for figure in figures:
        ElementTree.fromstring(figure.svg)


def test_there_are_no_figures_before_the_first_epoch() -> None:
    assert report_figures(results_of([])) == []
    assert report_figures(results_of([a_record("0000", (), "failed")])) == []


def test_names_in_a_figure_are_plain_text() -> None:
    for figure in report_figures(results_of([a_record("0000", strategy=STRANGE), *some_finals("0000", 0.9)])):
        root = ElementTree.fromstring(figure.svg)
        assert not any(element.tag.endswith("script") for element in root.iter())
        assert "\x1b" not in figure.svg
        assert "\u202e" not in figure.svg
        figure.svg.encode()


def test_inline_figures_use_the_colours_of_the_page_and_have_unique_ids(opened: Results) -> None:
    svgs = [inline_svg(figure.svg) for figure in report_figures(opened)]
    assert all(svg.startswith("<svg") and INK not in svg and "var(--ink)" in svg for svg in svgs)
    ids = [element.get("id") for svg in svgs for element in ElementTree.fromstring(svg).iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_a_strategy_has_the_same_style_in_every_figure() -> None:
    styles = assign_strategy_styles(["naive", "clip", "naive"])
    assert styles == assign_strategy_styles(["clip", "naive"])
    assert len(set(assign_strategy_styles(f"way_{i}" for i in range(40)).values())) == 40


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=20))
def test_no_point_dominates_a_point_on_the_pareto_front(points: list[tuple[int, int]]) -> None:
    front = pareto_front(points)
    assert bool(front) == bool(points)
    for cost, value in front:
        assert not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted))
def test_labels_keep_their_order_and_a_minimum_gap(positions: list[float]) -> None:
    moved = spread_labels(positions, gap=0.1)
    assert len(moved) == len(positions)
    assert all(above - below >= 0.1 - 1e-9 for below, above in pairwise(moved))
