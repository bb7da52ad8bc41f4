"""The start-up benchmark: one row per event, with the median and the range of each side."""

from __future__ import annotations

import os

from benchmarks.startup import FINE_TUNING, HEAD, PLAN, PRINTED, Moment, rows, tree_cpu_seconds


def test_each_row_holds_an_event_with_the_median_and_the_range_of_both_sides() -> None:
    ours = [{PLAN: Moment(wall, 2 * wall), FINE_TUNING: Moment(20.0, 30.0)} for wall in (8.0, 6.0, 7.0)]
    plain = [{HEAD: Moment(30.0, 40.0)}]
    assert rows({"ours": ours, "plain script": plain}) == [
        (PLAN, "7.0 s (6.0 to 8.0); processor 14.0 s", "-"),
        (PRINTED, "-", "-"),
        (HEAD, "-", "30.0 s (30.0 to 30.0); processor 40.0 s"),
        (FINE_TUNING, "20.0 s (20.0 to 20.0); processor 30.0 s", "-"),
    ]


def test_the_processor_seconds_of_a_process_are_counted() -> None:
    assert tree_cpu_seconds(os.getpid()) > 0
    assert tree_cpu_seconds(-1) == 0
