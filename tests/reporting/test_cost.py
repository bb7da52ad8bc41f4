"""Cost of a sweep, from the records of its starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sweeps.reporting.cost import COST_COVERAGE_NOTE, NodeTypeCost, cost_by_node_type, describe_cost, total_usd
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from sweeps.reporting.summary import cost_sentence, how_to_read
from tests.reporting.conftest import a_record, results_of

HEAD = {"node_type": "head", "usd_per_hour": 0.192, "from": "label", "seconds": 36_000.0}
L4 = {"node_type": "l4", "usd_per_hour": 0.35, "from": "label", "seconds": 7_200.0}
FREE = {"node_type": "a10g", "usd_per_hour": None, "from": None, "seconds": 90.0}


def test_the_cost_is_summed_over_all_starts_by_node_type_and_price() -> None:
    expensive = {**L4, "usd_per_hour": 0.5, "seconds": 3_600.0}
    starts = [{"machines": [HEAD, L4]}, {"machines": [L4, expensive]}]
    assert cost_by_node_type(starts) == [
        NodeTypeCost("head", 0.192, 36_000.0),
        NodeTypeCost("l4", 0.35, 14_400.0),
        NodeTypeCost("l4", 0.5, 3_600.0),
    ]
    assert total_usd(starts) == 1.92 + 1.4 + 0.5
    assert describe_cost(starts) == (
        "$3.82 for 10 h 0 min of head at $0.192, 4 h 0 min of l4 at $0.35 and 1 h 0 min of l4 at $0.50 an hour"
    )


def test_without_a_price_no_cost_is_reported() -> None:
    assert total_usd([]) is total_usd([{"machines": [FREE]}]) is None
    assert describe_cost([]) is describe_cost([{"machines": [FREE]}]) is None
    results = results_of([a_record("0000")])
    assert cost_sentence(results) is None
    assert COST_COVERAGE_NOTE not in how_to_read(results)


def test_machines_without_a_price_are_listed_as_not_counted() -> None:
    assert describe_cost([{"machines": [HEAD, FREE]}]) == (
        "$1.92 for 10 h 0 min of head at $0.192 an hour; not counted, price unknown: 1 min 30 s of a10g"
    )


def test_a_price_of_zero_is_a_known_price() -> None:
    assert total_usd([{"machines": [{**HEAD, "usd_per_hour": 0.0}]}]) == 0.0


def test_the_report_states_the_cost_and_how_it_is_counted(opened: Results, tmp_path: Path) -> None:
    results = dataclasses.replace(opened, spending=[{"machines": [L4]}])
    assert cost_sentence(results) == "The sweep cost $0.70 for 2 h 0 min of l4 at $0.35 an hour."
    assert how_to_read(results)[-1] == COST_COVERAGE_NOTE
    html = render(results, tmp_path).read_text(encoding="utf-8")
    assert "<li>The sweep cost $0.70 for 2 h 0 min of l4 at $0.35 an hour.</li>" in html
    assert r"The sweep cost \$0.70 for 2 h 0 min of l4 at \$0.35 an hour." in (tmp_path / "report.md").read_text()


def test_control_characters_in_a_node_type_are_escaped() -> None:
    text = describe_cost([{"machines": [{**L4, "node_type": "l4\x1b[31m"}]}])
    assert text == r"$0.70 for 2 h 0 min of l4\x1b[31m at $0.35 an hour"
