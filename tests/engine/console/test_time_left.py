"""Time left: every stage of a sweep, from the paces measured so far, and never a guess."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.engine.console.time_left import (
    OPENING_SECONDS,
    RunPace,
    StageTime,
    format_time_left,
    run_pace,
    time_left,
)
from tests.engine.conftest import EPOCHS, a_plan, a_recipe, an_epoch
from xfer.records import MAX_NOISE_IMAGES, NOISE_KINDS, Phase

DATA = {"train": 200, "val": 50, "test": 100}


def plan(**changes: Any) -> dict[str, Any]:
    data = {**a_plan()["data"], **DATA}
    settings = {"trials": 10, "finalists": 2, "seeds": 3, "scheduler": "asha", **changes}
    return a_plan(data=data, **settings)


def pace(
    trial: str,
    epochs: int = EPOCHS,
    seconds: float | None = None,
    *,
    ended: bool = True,
    head: bool = False,
    phase: Phase = "search",
    evaluation: float | None = 0.01,
) -> RunPace:
    """A run of which each epoch took 10 s."""
    taken = 10.0 * epochs if seconds is None else seconds
    return RunPace(trial, phase, head, epochs, EPOCHS, taken, ended, None if head else evaluation)


def seconds_by_stage(stages: Sequence[StageTime]) -> dict[str, float | None]:
    return {stage.name: stage.seconds for stage in stages}


def search(count: int) -> list[RunPace]:
    return [pace(f"{number:04d}") for number in range(count)]


# --- stage by stage --------------------------------------------------------------------------------------------------


def test_before_the_first_epoch_nothing_is_known() -> None:
    assert seconds_by_stage(time_left(plan(), [], [])) == dict.fromkeys(("search", "finals", "test", "noise"))


def test_heads_alone_say_nothing_about_trials_that_train_networks() -> None:
    heads = [pace(f"{number:04d}", seconds=0.1, head=True) for number in range(3)]
    stages = seconds_by_stage(time_left(plan(), heads, ["0000"]))
    assert stages == dict.fromkeys(("search", "finals", "test", "noise"))


def test_finals_of_nothing_but_heads_are_known() -> None:
    heads = [pace(f"{number:04d}", seconds=2.0, head=True) for number in range(10)]
    assert seconds_by_stage(time_left(plan(), heads, ["0000", "0001"]))["finals"] == pytest.approx(6 * 2.0)


def test_a_search_of_nothing_but_heads_is_extrapolated_from_heads() -> None:
    heads = [pace(f"{number:04d}", seconds=2.0, head=True) for number in range(3)]
    only = plan(space={"strategy": "linear_probe, ridge_probe"}, finalists=0)
    assert seconds_by_stage(time_left(only, heads, [])) == {"search": 7 * 2.0}


def test_the_search_is_extrapolated_from_trials_that_ended_and_that_run() -> None:
    runs = [*search(3), pace("0003", epochs=1, ended=False)]
    stages = seconds_by_stage(time_left(plan(), runs, []))
    assert stages["search"] == pytest.approx(30 + 6 * 40)
    assert seconds_by_stage(time_left(plan(), runs, [], concurrent=2))["search"] == pytest.approx((30 + 6 * 40) / 2)
    assert seconds_by_stage(time_left(plan(), runs, [], stretch=1.5))["search"] == pytest.approx((30 + 6 * 40) * 1.5)


def test_trials_that_were_stopped_early_make_the_rest_of_the_search_shorter() -> None:
    stopped = [pace(f"{number:04d}", epochs=1) for number in range(5)]
    assert seconds_by_stage(time_left(plan(), stopped, []))["search"] == pytest.approx(5 * 10)


def test_with_one_epoch_top_k_most_trials_have_a_single_epoch() -> None:
    # 16 trials, of which the best three continue: 1 + 3 / 16 * 3 epochs each
    top_k = plan(trials=16, scheduler="one_epoch_top_k", finalists=0)
    (stage,) = time_left(top_k, [pace("0000", epochs=1, ended=False)], [])
    assert stage.seconds == pytest.approx(3 * 10 + 15 * 10 * (1 + 3 / 16 * 3))


def test_the_finals_take_as_long_as_the_search_runs_of_the_finalists() -> None:
    runs = [*search(8), pace("0008", seconds=400.0), pace("0009", seconds=1.0, head=True)]
    stages = seconds_by_stage(time_left(plan(), runs, ["0008", "0000", "0009"]))
    assert list(stages) == ["finals", "test", "noise"]
    assert stages["finals"] == pytest.approx(3 * (400 + 40 + 1))


def test_finalists_that_are_not_known_yet_cost_as_much_as_the_mean() -> None:
    stages = seconds_by_stage(time_left(plan(finalists=3), search(4), ["0000"]))
    assert stages["finals"] == pytest.approx(9 * 40)


def test_final_runs_that_have_ended_or_are_running_are_not_counted_again() -> None:
    finals = [
        pace("0000-s1", seconds=60.0, phase="final"),
        pace("0001-s1", epochs=2, ended=False, phase="final"),
    ]
    stages = seconds_by_stage(time_left(plan(), [*search(10), *finals], ["0000", "0001"]))
    # 0000 took 60 s on the first seed; 0001 needs another 20 s there
    assert stages["finals"] == pytest.approx(2 * 60 + 20 + 2 * 40)


def test_the_last_trials_take_as_long_as_the_longest_of_them() -> None:
    runs = [*search(10), pace("0000-s1", epochs=1, ended=False, phase="final")]
    (finals, *_) = time_left(plan(seeds=1, finalists=1), runs, ["0000"], concurrent=8)
    assert finals == StageTime("finals", 30.0)


def test_the_test_part_takes_as_long_as_its_images() -> None:
    finals = [pace(f"{name}-s{seed}", phase="final") for name in ("0000", "0001") for seed in (1, 2, 3)]
    runs = [*search(10), *finals]
    stages = seconds_by_stage(time_left(plan(), runs, ["0000", "0001"]))
    assert list(stages) == ["test", "noise"]
    assert stages["test"] == pytest.approx(6 * (100 * 0.01 + OPENING_SECONDS))
    assert stages["noise"] == pytest.approx(6 * (7 * 100 * 0.01 + OPENING_SECONDS))
    half = seconds_by_stage(time_left(plan(), runs, ["0000", "0001"], tested=3, noise_scores=21))
    assert half == {name: pytest.approx(seconds / 2) for name, seconds in stages.items() if seconds is not None}
    assert time_left(plan(), runs, ["0000", "0001"], tested=6, noise_scores=42) == ()


def test_noise_is_measured_on_a_limited_number_of_images_and_on_one_body_for_all_heads() -> None:
    large = plan(finalists=1)
    large["data"] = {**large["data"], "test": 10_000}
    runs = [*search(9), pace("0009", seconds=1.0, head=True)]
    runs += [pace(f"{name}-s{seed}", phase="final") for name in ("0000", "0009") for seed in (1, 2, 3)]
    stages = seconds_by_stage(time_left(large, runs, ["0000", "0009"], tested=6))
    passes = 3 + 1
    assert stages == {"noise": pytest.approx(passes * len(NOISE_KINDS) * MAX_NOISE_IMAGES * 0.01 + 6 * OPENING_SECONDS)}


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"finalists": 0}, ["search"]),
        ({"noise": False}, ["search", "finals", "test"]),
        ({}, ["search", "finals", "test", "noise"]),
    ],
    ids=["no finals", "no noise", "all"],
)
def test_stages_that_are_not_planned_take_no_time(changes: dict[str, Any], stages: list[str]) -> None:
    assert [stage.name for stage in time_left(plan(**changes), search(2), ["0000"][: changes.get("finalists", 1)])] == (
        stages
    )


def test_a_finished_sweep_has_no_time_left() -> None:
    assert time_left(plan(finalists=0), search(10), []) == ()


def test_a_screening_comes_first_and_is_measured_by_its_heads() -> None:
    stages = time_left(plan(), [], [], measured={"screening": 12.0})
    assert stages[0] == StageTime("screening", 12.0)
    assert [stage.name for stage in stages] == ["screening", "search", "finals", "test", "noise"]
    assert time_left(plan(), [], [], measured={"screening": None})[0] == StageTime("screening", None)


def test_the_pace_of_a_running_evaluation_counts_more_than_the_forecast() -> None:
    runs = [*search(10), *(pace(f"0000-s{seed}", phase="final") for seed in (1, 2, 3))]
    stages = time_left(plan(finalists=1), runs, ["0000"], tested=3, measured={"noise": 77.0})
    assert stages == (StageTime("noise", 77.0),)
    unknown = time_left(plan(finalists=1), runs, ["0000"], tested=3, measured={"noise": None})
    assert unknown == time_left(plan(finalists=1), runs, ["0000"], tested=3)


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_a_budget_shortens_the_search_and_leaves_the_finals_what_they_need() -> None:
    stages = seconds_by_stage(time_left(plan(), search(4), ["0000", "0001"], limit=300.0))
    assert (stages["search"], stages["finals"]) == (pytest.approx(300 - 6 * 40), pytest.approx(6 * 40))


def test_a_budget_that_is_too_small_for_the_finals_ends_them() -> None:
    stages = seconds_by_stage(time_left(plan(), search(4), ["0000", "0001"], limit=100.0))
    assert (stages["search"], stages["finals"]) == (0.0, 100.0)


def test_a_budget_that_suffices_changes_nothing() -> None:
    runs = search(4)
    assert time_left(plan(), runs, ["0000"], limit=1e6) == time_left(plan(), runs, ["0000"])


# --- paces -----------------------------------------------------------------------------------------------------------


def test_the_pace_of_an_evaluation_is_what_an_epoch_takes_besides_training() -> None:
    epochs = [an_epoch(1, 0.5, seconds=6.0), an_epoch(2, 0.5, seconds=5.0)]  # 200 images at 50 a second take 4 s
    run = run_pace("0000", "search", a_recipe(), epochs, DATA, ended=False)
    assert (run.epochs, run.planned_epochs, run.seconds, run.is_head) == (2, EPOCHS, 11.0, False)
    assert run.seconds_per_evaluation == pytest.approx((2 + 1) / 2 / 50)


def test_fewer_images_per_class_train_in_less_of_an_epoch() -> None:
    recipe = a_recipe(images_per_class=10)  # of 3 classes
    run = run_pace("0000", "search", recipe, [an_epoch(1, 0.5, seconds=1.6)], DATA, ended=False)
    assert run.seconds_per_evaluation == pytest.approx((1.6 - 30 / 50) / 50)


def test_heads_and_runs_without_an_epoch_say_nothing_about_evaluations() -> None:
    assert run_pace("0000", "search", a_recipe(), [], DATA, ended=False).seconds_per_evaluation is None
    head = run_pace("0000", "search", a_recipe("linear_probe"), [an_epoch(1, 0.5)], DATA, ended=True)
    assert (head.is_head, head.seconds_per_evaluation) == (True, None)


# --- properties ------------------------------------------------------------------------------------------------------

durations = st.floats(0.01, 1e5)
searches = st.lists(st.tuples(durations, st.integers(0, EPOCHS), st.booleans(), st.booleans()), max_size=10)


@given(searches, st.integers(1, 64), st.integers(0, 5), st.booleans())
def test_no_stage_takes_less_than_nothing_and_a_stage_that_is_left_is_listed(
    runs: list[tuple[float, int, bool, bool]], concurrent: int, finalists: int, noise: bool
) -> None:
    paces = [
        pace(f"{number:04d}", epochs, seconds if epochs else 0.0, ended=ended, head=head)
        for number, (seconds, epochs, ended, head) in enumerate(runs)
    ]
    chosen = [run.trial for run in paces if run.ended][:finalists]
    changes = {} if noise else {"noise": False}
    stages = time_left(plan(finalists=finalists, **changes), paces, chosen, concurrent=concurrent)
    assert all(stage.seconds is None or stage.seconds >= 0 for stage in stages)
    names = [stage.name for stage in stages]
    assert ("search" in names) == (sum(run.ended for run in paces) < 10)
    assert names == [name for name in ("search", "finals", "test", "noise") if name in names]


@given(st.integers(1, 10), st.integers(1, 32), durations)
def test_the_time_left_falls_with_every_trial_that_ends_and_with_more_machines(
    done: int, concurrent: int, seconds: float
) -> None:
    def left(count: int, at_a_time: int) -> float:
        runs = [pace(f"{number:04d}", seconds=seconds) for number in range(count)]
        stages = time_left(plan(), runs, ["0000", "0001"][:count], concurrent=at_a_time)
        return sum(stage.seconds or 0.0 for stage in stages)

    assert left(done, concurrent + 1) <= left(done, concurrent) * (1 + 1e-9)
    if done > 2:
        assert left(done, concurrent) <= left(done - 1, concurrent) * (1 + 1e-9)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ([("search", 2.0)], "search 5 s left"),
        ([("search", 58.0)], "search 1 min left"),
        (
            [("search", 118.0), ("finals", 790.0), ("test", 40.0)],
            "search 2 min · finals about 13 min · test about 40 s",
        ),
        ([("finals", 7_260.0), ("noise", 3_000.0)], "finals 2 h · noise about 50 min · 2 h 50 min left"),
        ([("search", None), ("finals", None)], "time left: not known yet"),
        ([("search", 60.0), ("finals", None), ("test", None)], "search 1 min · finals and test not known yet"),
        ([("screening", 10.0), ("search", None)], "screening 10 s · search not known yet · at least 10 s left"),
        ([], ""),
    ],
)
def test_the_time_left_is_a_short_line(stages: list[tuple[str, float | None]], text: str) -> None:
    assert format_time_left([StageTime(name, seconds) for name, seconds in stages]).startswith(text)


@given(st.lists(st.floats(0, 1e7), min_size=2, max_size=4))
def test_the_total_is_the_sum_of_what_is_shown(seconds: list[float]) -> None:
    text = format_time_left([StageTime(f"stage{number}", left) for number, left in enumerate(seconds)])
    *parts, total = [_parse(part) for part in text.split(" · ")]
    unit = 5 if total < 60 else 60 if total < 7_200 else 600
    assert abs(total - sum(parts)) <= unit / 2


def _parse(text: str) -> float:
    words = text.removesuffix(" left").split()
    factors = {"s": 1, "min": 60, "h": 3600}
    return sum(
        float(number.replace(",", "")) * factors[unit] for number, unit in itertools.pairwise(words) if unit in factors
    )
