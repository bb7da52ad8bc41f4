"""A report ranks by what its sweep searched for and says so; accuracy is always beside it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeps.reporting.figures import report_figures
from sweeps.reporting.ranking import ranked_trials, ranking_frame, tally_by_strategy
from sweeps.reporting.render import render
from sweeps.reporting.results import Results
from sweeps.reporting.summary import caveats, headline, how_to_read, pareto_sentence, strategy_comparison
from sweeps.reporting.tables import ranking_table, strategies_table, summary_table
from tests.reporting.conftest import a_record, an_evaluation, results_of
from xfer.objectives import OBJECTIVES
from xfer.records import CorruptionScore, Record


def a_run(trial: str, accuracy: float, status: Any = "finished", seconds: float = 10.0, **measures: Any) -> Record:
    """A record whose epochs share these further measures."""
    strategy = measures.pop("strategy", "naive")
    record = a_record(trial, (0.5, accuracy), status, seconds=seconds, strategy=strategy)
    return replace(record, epochs=tuple(replace(epoch, **measures) for epoch in record.epochs))


def some_finals(trial: str, accuracy: float, *losses: float, test_loss: float | None = None) -> list[Record]:
    """Final runs with these losses; with `test_loss`, the test part has been opened."""
    found = [a_run(f"{trial}-s{seed}", accuracy, val_loss=loss) for seed, loss in enumerate(losses, start=1)]
    if test_loss is None:
        return found
    test = replace(an_evaluation("test", 80, first=1000), loss=test_loss)
    return [replace(record, test=test) for record in found]


@pytest.fixture
def by_loss() -> Results:
    """Two finalists, tested; the accurate one has the worse loss, on either part."""
    records = [
        a_run("0000", 0.9, val_loss=0.5),
        a_run("0001", 0.8, val_loss=0.2, strategy="scratch"),
        a_run("0002", 0.7, val_loss=0.3),
        a_run("0003", 0.6, "pruned", val_loss=0.1),
        *some_finals("0001", 0.8, 0.2, 0.3, test_loss=0.4),
        *some_finals("0000", 0.9, 0.5, 0.7, test_loss=0.9),
    ]
    return results_of(records, ["0001", "0000"], objective=["loss"])


@pytest.fixture
def by_two() -> Results:
    """Accuracy and seconds: 0000, 0002 and 0003 are on the front."""
    records = [
        a_run("0000", 0.90, seconds=9.0),
        a_run("0001", 0.89, seconds=9.5),
        a_run("0002", 0.70, seconds=2.0, strategy="linear_probe"),
        a_run("0003", 0.80, seconds=5.0),
        a_run("0004", 0.99, "pruned", seconds=1.0),
    ]
    return results_of(records, objective=["accuracy", "seconds"])


def names(results: Results) -> list[str]:
    return [trial.name for trial in ranked_trials(results)]


def test_a_plan_from_before_there_was_a_choice_means_accuracy() -> None:
    assert results_of([]).objective == OBJECTIVES["accuracy"]
    assert results_of([], objective=["loss"]).objective == OBJECTIVES["loss"]


def test_trials_stand_in_the_order_of_the_objective(by_loss: Results) -> None:
    unopened = Results(by_loss.plan, by_loss.records)
    assert names(by_loss) == names(unopened) == ["0001", "0000", "0002", "0003"]
    searched = [record for record in by_loss.records if record.phase == "search"]
    assert names(Results(by_loss.plan, searched)) == ["0001", "0002", "0000", "0003"]
    assert names(Results({**by_loss.plan, "objective": ["accuracy"]}, searched)) == ["0000", "0001", "0002", "0003"]


def test_the_headline_says_what_was_searched_for_with_the_accuracy_beside_it(by_loss: Results) -> None:
    assert headline(by_loss) == (
        "Best in cross-entropy, with 0.25 on the validation part, is scratch on mobilenetv2_100 with adam at learning "
        "rate 0.001 (trial 0001). On the test part that is 0.4, and its accuracy 80.0% (71.1% to 86.7%; 100 images, "
        "2 seeds), after 80.0% (71.1% to 86.7%; 100 images, 2 seeds) on the validation part."
    )
    unopened = headline(results_of(by_loss.records[:3], objective=["loss"]))
    assert unopened.startswith("Ahead in cross-entropy, with 0.2 on the validation part, is scratch")
    assert "its accuracy there is 80.0% (" in unopened


def test_strategies_are_compared_by_the_objective(by_loss: Results) -> None:
    assert [tally.strategy for tally in tally_by_strategy(by_loss.trials)] == ["scratch", "naive"]
    assert strategy_comparison(by_loss) == (
        "Best single search run of each strategy by cross-entropy on the validation part: scratch 0.2 and naive 0.3."
    )
    table = strategies_table(by_loss)
    assert table.header == ("strategy", "trials", "finished", "best", "median", "best accuracy", "pruned", "failed")
    assert table.rows[1] == ("naive", "3", "2", "0.3", "0.4", "90.0%", "1", "0")


def test_tables_have_a_column_for_the_objective_before_the_accuracies(by_loss: Results, by_two: Results) -> None:
    wanted = ("rank", "trial", "strategy", "status", "cross-entropy", "validation", "test")
    assert summary_table(by_loss).header == wanted
    assert [row[4] for row in summary_table(by_loss).rows] == ["0.25", "0.6", "0.3", "0.1"]
    assert ranking_table(by_two).header[:6] == ("rank", "trial", "strategy", "front", "validation", "test")
    assert [(row[1], row[3]) for row in ranking_table(by_two).rows] == [
        ("0000", "yes"),
        ("0001", ""),
        ("0003", "yes"),
        ("0002", "yes"),
        ("0004", ""),
    ]


def test_a_lower_loss_on_test_and_a_tie_over_seeds_are_admitted(by_loss: Results) -> None:
    tied = [
        *by_loss.records[:3],
        *some_finals("0001", 0.8, 0.2, 0.6, test_loss=0.9),
        *some_finals("0000", 0.9, 0.5, 0.7, test_loss=0.4),
    ]
    close, higher = caveats(results_of(tied, ["0001", "0000"], objective=["loss"]))
    assert close.startswith("Intervals are given for accuracy only; for cross-entropy there is the spread over seeds")
    assert "0001 (0.2 to 0.6) and 0000 (0.5 to 0.7), overlap: which of them is better is not settled." in close
    assert higher.startswith("On the test part finalist 0000 came out lower, which is better, at 0.4.")
    (apart,) = caveats(by_loss)
    assert "overlap" not in apart


def test_the_reader_is_told_by_what_was_chosen(by_loss: Results, by_two: Results) -> None:
    assert how_to_read(by_loss)[0].startswith("The search chose by cross-entropy on the validation part.")
    assert "by the cross-entropy of their one run" in how_to_read(by_loss)[3]
    assert len(how_to_read(by_loss)) == 4
    assert (
        "finalists are ranked, by accuracy alone, so a recipe that gains less and costs less may"
        in (how_to_read(by_two)[4])
    )


# --- two objectives --------------------------------------------------------------------------------------------------


def test_the_front_is_named_with_both_values(by_two: Results) -> None:
    assert by_two.pareto_front == {"0000", "0002", "0003"}
    assert pareto_sentence(by_two) == (
        "On the Pareto front of accuracy and seconds, where no other search run is better in one without being worse "
        "in the other, are 3 of 4 finished trials: 0000 (90.0%, 9.0 s), 0003 (80.0%, 5.0 s) and 0002 (70.0%, 2.0 s)."
    )


def test_there_is_no_front_of_one_objective_nor_of_no_trial(by_loss: Results) -> None:
    assert (by_loss.pareto_front, pareto_sentence(by_loss)) == (frozenset(), None)
    nothing = results_of([a_run("0000", 0.5, "pruned")], objective=["loss", "seconds"])
    assert pareto_sentence(nothing) == "No trial finished, so there is no Pareto front of cross-entropy and seconds."


def texts(svg: str) -> list[str]:
    found = (element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text"))
    return [text.strip() for text in found]


def drawn(results: Results) -> dict[str, list[str]]:
    return {drawing.name: texts(drawing.svg) for drawing in report_figures(results)}


def test_the_cost_figure_marks_the_front_where_seconds_were_searched_for(by_two: Results, by_loss: Results) -> None:
    assert "Pareto front" in drawn(by_two)["cost"]
    assert {"0000", "0002", "0003"} <= set(drawn(by_two)["cost"])
    assert "Pareto front" not in drawn(by_loss)["cost"]
    assert "trade" not in drawn(by_two)


def test_two_objectives_that_are_no_cost_have_a_figure_of_their_own() -> None:
    records = [
        a_run("0000", 0.9, val_loss=0.5),
        a_run("0001", 0.8, val_loss=0.2),
        a_run("0002", 0.7, val_loss=0.9),
    ]
    results = results_of(records, objective=["accuracy", "loss"])
    said = drawn(results)["trade"]
    assert {"Pareto front", "0000", "0001", "cross-entropy on the validation part (lower is better)"} <= set(said)
    assert "0002" not in said
    (drawing,) = [drawing for drawing in report_figures(results) if drawing.name == "trade"]
    assert drawing.title == "What accuracy costs in cross-entropy"


def test_figures_show_the_objective(by_loss: Results) -> None:
    said = drawn(by_loss)
    label = "cross-entropy on the validation part (lower is better)"
    assert all(label in said[name] for name in ("strategies", "learning_curves", "cost"))
    assert "best 0.2, n = 1" in said["strategies"]
    assert "validation 80.0%" in said["finalists"]


# --- all that was measured -------------------------------------------------------------------------------------------


def test_the_csv_holds_what_was_measured_beside_accuracy() -> None:
    measures = {
        "val_balanced_accuracy": 0.7,
        "val_top5_accuracy": 0.95,
        "val_calibration_error": 0.05,
        "val_noisy_accuracy": 0.4,
        "distance": 0.1,
        "peak_memory_mb": 512.0,
    }
    noisy = (CorruptionScore("blur", 1, 10, 8), CorruptionScore("blur", 5, 10, 2), CorruptionScore("grey", 1, 10, 9))
    tests = [
        replace(an_evaluation("test", 80), balanced_accuracy=value, calibration_error=0.1, noisy=noisy)
        for value in (0.6, 0.8)
    ]
    records = [
        replace(a_run("0000", 0.8, **measures), start_accuracy=0.5, flops=10**12),
        *(
            replace(a_run(f"0000-s{seed}", 0.7 + 0.1 * seed, **measures), test=test, start_accuracy=0.1 * seed)
            for seed, test in enumerate(tests, start=1)
        ),
        a_record("0001"),
    ]
    new, old = (row for _, row in ranking_frame(results_of(records, ["0000"])).iterrows())
    assert {name: new[name] for name in measures} == pytest.approx(measures)
    assert new["gap"] == pytest.approx(0.6 - 0.85)
    assert (new["flops"], new["start_accuracy"]) == (10**12, pytest.approx(0.15))
    assert new["test_balanced_accuracy"] == pytest.approx(0.7)
    assert new["test_noisy_accuracy"] == pytest.approx((0.5 + 0.9) / 2)
    assert (new["objective"], new["head"], new["body_rate"]) == ("accuracy", "linear", 1.0)
    absent: Sequence[str] = [*measures.keys(), "test_noisy_accuracy", "flops", "start_accuracy", "on_front"]
    assert all(pd.isna(old[name]) for name in absent)


def test_the_csv_says_what_was_searched_for_and_who_is_on_the_front(by_two: Results) -> None:
    frame = ranking_frame(by_two)
    assert set(frame["objective"]) == {"accuracy,seconds"}
    assert list(frame["on_front"]) == ["yes", "no", "yes", "yes", "no"]


def test_both_pages_say_what_they_rank_by_and_what_is_on_the_front(by_two: Results, tmp_path: Path) -> None:
    html = render(by_two, tmp_path)
    for page in (html.read_text(), (tmp_path / "report.md").read_text()):
        assert "Ranked by accuracy on the validation part." in page
        assert "On the Pareto front of accuracy and seconds" in page
        assert "for accuracy and seconds, sampler tpe" in page


def test_a_pages_words_for_what_a_recipe_does_not_say_are_the_recipes_own() -> None:
    recipe = pytest.importorskip("xfer.recipe")
    from sweeps.reporting.formatting import DEFAULT_CHOICES

    fields = recipe.Recipe.__dataclass_fields__
    assert {name: {"name": usual} for name, usual in recipe.USUAL.items()} == {
        name: usual for name, usual in DEFAULT_CHOICES.items() if isinstance(usual, dict)
    }
    for name in ("body_rate", "clip_value", "images_per_class"):
        assert fields[name].default == DEFAULT_CHOICES[name]
    said = {"strategy", "optimizer", "schedule", "augmentation", "mixing", "loss", *DEFAULT_CHOICES}
    assert set(recipe.TABLES) <= said
