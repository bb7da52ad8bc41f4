"""Selection: which trials become finalists, which runs they get, and which of them wins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sweeps.engine import selection
from sweeps.engine.plan import Plan
from tests.engine.conftest import a_recipe, a_record, an_epoch, an_evaluation
from xfer.objectives import parse_objectives
from xfer.recipe import recipe_from_dict
from xfer.records import Record, Status

PLAN = Plan("folder", "Which?", seeds=3, seed=10)


def test_the_best_finished_trials_are_selected_best_first() -> None:
    records = [a_record(f"{number:04d}", (0.1, value)) for number, value in enumerate((0.5, 0.9, 0.7, 0.8))]
    assert selection.select_best(records, 3) == ["0001", "0003", "0002"]
    assert selection.select_best(records, 9) == ["0001", "0003", "0002", "0000"]
    assert selection.select_best(records, 0) == []
    assert selection.select_best([], 3) == []


def test_trials_are_ranked_by_their_last_epoch_not_their_best() -> None:
    assert selection.select_best([a_record("0000", (0.9, 0.5)), a_record("0001", (0.1, 0.6))], 1) == ["0001"]


@pytest.mark.parametrize("order", [1, -1])
def test_ties_go_to_the_earlier_trial(order: int) -> None:
    records = [a_record(name, (0.8,)) for name in ("0002", "0010", "0003")]
    assert selection.select_best(records[::order], 2) == ["0002", "0003"]


def test_a_recipe_that_was_proposed_twice_is_selected_once() -> None:
    records = [
        a_record("0000", (0.9,), key="same"),
        a_record("0001", (0.9,), key="same"),
        a_record("0002", (0.95,), key="same"),
        a_record("0003", (0.5,), key="other"),
    ]
    assert selection.select_best(records, 2) == ["0002", "0003"]


@pytest.mark.parametrize("status", ["pruned", "failed"])
def test_only_finished_trials_of_the_search_are_selected(status: Status) -> None:
    records = [a_record("0000", (0.9, 0.95), status), a_record("0001", (0.5,)), a_record("0002-s1", (0.99,))]
    assert selection.select_best(records, 3) == ["0001"]


# --- the baseline among the finalists ---------------------------------------------------------------------------------


def a_search(*strategies: str) -> list[Record]:
    """Finished trials of these strategies, best first."""
    return [
        a_record(f"{number:04d}", (0.9 - 0.1 * number,), recipe=a_recipe(strategy))
        for number, strategy in enumerate(strategies)
    ]


@pytest.mark.parametrize("head", ["linear_probe", "logistic_probe", "ridge_probe", "early_cut", "drop_early"])
def test_the_best_frozen_head_is_a_finalist_in_addition_to_the_best_trials(head: str) -> None:
    records = a_search("clip", "naive", "scratch", head, "linear_probe")
    assert selection.select_finalists(records, 2) == ["0000", "0001", "0003"]
    assert selection.select_finalists(records[::-1], 1) == ["0000", "0003"]


def test_a_frozen_head_among_the_best_is_not_added_again() -> None:
    records = a_search("clip", "linear_probe", "naive", "linear_probe")
    assert selection.select_finalists(records, 2) == ["0000", "0001"]
    assert selection.select_finalists(records, 3) == ["0000", "0001", "0002"]


@pytest.mark.parametrize("status", ["pruned", "failed"])
def test_without_a_finished_frozen_head_the_finalists_are_the_best_trials(status: Status) -> None:
    records = a_search("clip", "naive")
    assert selection.select_finalists(records, 3) == ["0000", "0001"]
    head = a_record("0002", (0.95,), status, recipe=a_recipe("linear_probe"))
    assert selection.select_finalists([*records, head], 3) == ["0000", "0001"]


def test_the_control_is_a_finalist_in_addition_to_the_best_trials() -> None:
    records = a_search("clip", "naive", "scratch", "linear_probe", "lp_ft")
    assert selection.select_finalists(records, 2, control=records[4].key) == ["0000", "0001", "0004", "0003"]
    assert selection.select_finalists(records[::-1], 1, control=records[3].key) == ["0000", "0003"]
    assert selection.select_finalists(records, 2, control=records[1].key) == ["0000", "0001", "0003"]


@pytest.mark.parametrize("status", ["pruned", "failed"])
def test_a_control_that_has_not_finished_the_search_is_no_finalist(status: Status) -> None:
    control = a_record("0009", (0.95,), status, recipe=a_recipe("lp_ft"))
    assert selection.select_finalists([*a_search("clip", "naive"), control], 1, control=control.key) == ["0000"]


def test_no_finalists_means_no_head_and_no_control_either() -> None:
    records = a_search("linear_probe", "clip")
    assert selection.select_finalists(records, 0, control=records[1].key) == []
    assert selection.select_finalists([], 3, control=records[1].key) == []


def test_with_two_objectives_the_best_head_is_that_of_the_front() -> None:
    objectives = parse_objectives("accuracy,seconds")

    def trial(name: str, accuracy: float, seconds: float, strategy: str) -> Record:
        record = a_record(name, (accuracy,), recipe=a_recipe(strategy))
        return replace(record, epochs=(an_epoch(1, accuracy, seconds),))

    records = [
        trial("0000", 0.9, 50.0, "clip"),
        trial("0001", 0.7, 9.0, "linear_probe"),
        trial("0002", 0.75, 60.0, "ridge_probe"),  # better, but clip is better in both
        trial("0003", 0.8, 20.0, "naive"),
    ]
    assert selection.select_finalists(records, 1, objectives) == ["0000", "0001"]


def test_the_head_of_a_screening_is_no_finalist() -> None:
    screened = replace(a_record("screen-00", (0.99,), recipe=a_recipe("logistic_probe")), phase="screen")
    assert selection.select_finalists([screened, *a_search("clip")], 3) == ["0000"]


# --- final runs ------------------------------------------------------------------------------------------------------


def finalists() -> list[Record]:
    return [a_record("0004", recipe=a_recipe("clip", seed=10)), a_record("0001", recipe=a_recipe("scratch", seed=10))]


def test_each_recipe_runs_on_seeds_that_the_search_did_not_use_and_seed_by_seed() -> None:
    trials = selection.finalist_trials(finalists(), PLAN, redraws=False)
    assert [trial.name for trial in trials] == ["0004-s1", "0001-s1", "0004-s2", "0001-s2", "0004-s3", "0001-s3"]
    assert [trial.recipe["seed"] for trial in trials] == [11, 11, 12, 12, 13, 13]
    assert {trial.phase for trial in trials} == {"final"}
    assert {str(trial.params) for trial in trials} == {"{}"}


@pytest.mark.parametrize(("redraws", "draws"), [(True, [1, 1, 2, 2, 3, 3]), (False, [0] * 6)])
def test_every_finalist_gets_the_same_draws_and_new_ones_only_with_redraws(redraws: bool, draws: Sequence[int]) -> None:
    assert [trial.recipe["draw"] for trial in selection.finalist_trials(finalists(), PLAN, redraws)] == draws


@pytest.mark.parametrize("redraws", [True, False])
def test_a_final_run_changes_only_the_seed_and_the_draw_of_a_recipe(redraws: bool) -> None:
    for record in finalists():
        for trial in selection.finalist_trials([record], PLAN, redraws):
            recipe = recipe_from_dict(trial.recipe)
            assert recipe.key == recipe_from_dict(record.recipe).key
            assert recipe.id != recipe_from_dict(record.recipe).id
            assert recipe.split_seed == record.recipe["split_seed"]
            assert {**trial.recipe, "seed": 10, "draw": 0} == recipe_from_dict(record.recipe).as_dict()


def test_no_two_final_runs_share_an_id() -> None:
    trials = selection.finalist_trials(finalists(), PLAN, redraws=True)
    assert len({recipe_from_dict(trial.recipe).id for trial in trials}) == len(trials)


# --- ranking and metrics ------------------------------------------------------------------------------------------


def ended() -> list[Record]:
    return [
        a_record("0001", (0.99,)),
        a_record("0001-s1", (0.6,), test=an_evaluation("test", 5)),
        a_record("0001-s2", (0.8,), test=an_evaluation("test", 8)),
        a_record("0002-s1", (0.7,)),
        a_record("0002-s2", (0.8,)),
        a_record("0002-s3", (0.95,), "failed", error="lost"),
        a_record("0003-s1", (0.9,)),
    ]


def test_finalist_runs_are_the_finished_final_runs_by_finalist() -> None:
    runs = selection.finalist_runs(ended(), ["0002", "0001", "0004"])
    assert {name: [record.trial for record in records] for name, records in runs.items()} == {
        "0002": ["0002-s1", "0002-s2"],
        "0001": ["0001-s1", "0001-s2"],
        "0004": [],
    }


def test_finalists_are_ranked_by_their_mean_score_and_those_without_a_run_are_left_out() -> None:
    assert selection.rank_finalists(selection.finalist_runs(ended(), ["0001", "0002", "0003", "0004"])) == [
        "0003",
        "0002",
        "0001",
    ]


def test_a_tie_in_the_ranking_goes_to_the_earlier_trial() -> None:
    assert selection.rank_finalists({"0007": [a_record("0007-s1", (0.5,))], "0002": [a_record("0002-s1", (0.5,))]}) == [
        "0002",
        "0007",
    ]


def test_the_ranking_ignores_the_test_part() -> None:
    good = a_record("0001-s1", (0.6,), test=an_evaluation("test", 10))
    better = a_record("0002-s1", (0.7,), test=an_evaluation("test", 1))
    assert selection.rank_finalists({"0001": [good], "0002": [better]}) == ["0002", "0001"]


def test_winner_metrics_are_means_over_its_final_runs() -> None:
    winner = ended()[1]
    assert selection.winner_metrics(winner, ended()) == pytest.approx({"val_accuracy": 0.7, "test_accuracy": 0.65})


def test_winner_metrics_without_finals_are_those_of_the_search_run() -> None:
    winner = a_record("0009", (0.5, 0.75))
    assert selection.winner_metrics(winner, [winner]) == {"val_accuracy": 0.75}


def test_winner_metrics_lack_the_test_part_before_it_is_opened() -> None:
    assert selection.winner_metrics(ended()[3], ended()) == pytest.approx({"val_accuracy": 0.75})


@pytest.mark.parametrize(("name", "repeated"), [("0007-s2", "0007"), ("0007", "0007"), ("12345-s10", "12345")])
def test_a_final_run_names_the_trial_it_repeats(name: str, repeated: str) -> None:
    assert selection.search_trial_name(name) == repeated
