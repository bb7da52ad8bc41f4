"""A report ranks by the objective of its sweep and says so; accuracies are always shown as well."""

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
from sweeps.reporting.tables import ranking_table, search_table, strategies_table, summary_table
from tests.reporting.conftest import a_record, an_evaluation, results_of
from xfer.objectives import OBJECTIVES
from xfer.records import CorruptionScore, Record


def a_run(trial: str, accuracy: float, status: Any = "finished", seconds: float = 10.0, **measures: Any) -> Record:
    """A record whose epochs all have these further metrics."""
    strategy = measures.pop("strategy", "naive")
    record = a_record(trial, (0.5, accuracy), status, seconds=seconds, strategy=strategy)
    return replace(record, epochs=tuple(replace(epoch, **measures) for epoch in record.epochs))


def some_finals(trial: str, accuracy: float, *losses: float, test_loss: float | None = None) -> list[Record]:
    """Final runs with these losses; with `test_loss`, they have been evaluated on the test set."""
    records = [a_run(f"{trial}-s{seed}", accuracy, val_loss=loss) for seed, loss in enumerate(losses, start=1)]
    if test_loss is None:
        return records
    test = replace(an_evaluation("test", 80, first=1000), loss=test_loss)
    return [replace(record, test=test) for record in records]


@pytest.fixture
def by_loss() -> Results:
    """A sweep by loss with two tested finalists: the one with the higher accuracy has the higher loss."""
    records = [
        a_run("0000", 0.9, val_loss=0.5),
        a_run("0001", 0.8, val_loss=0.2, strategy="scratch"),
        a_run("0002", 0.7, val_loss=0.3),
        a_run("0003", 0.6, "pruned", val_loss=0.1),
        *some_finals("0001", 0.8, 0.2, 0.3, test_loss=0.4),
        *some_finals("0000", 0.9, 0.5, 0.7, test_loss=0.9),
    ]
    return results_of(records, ["0001", "0000"], objective=["loss"], seeds=2)


@pytest.fixture
def by_two() -> Results:
    """A sweep by accuracy and seconds: 0000, 0002 and 0003 are on the Pareto front."""
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


def test_a_plan_without_an_objective_means_accuracy() -> None:
    assert results_of([]).objective == OBJECTIVES["accuracy"]
    assert results_of([], objective=["loss"]).objective == OBJECTIVES["loss"]


def test_trials_are_ranked_by_the_objective(by_loss: Results) -> None:
    unopened = Results(by_loss.plan, by_loss.records)
    assert names(by_loss) == names(unopened) == ["0001", "0000", "0002", "0003"]
    search = [record for record in by_loss.records if record.phase == "search"]
    assert names(Results(by_loss.plan, search)) == ["0001", "0002", "0000", "0003"]
    assert names(Results({**by_loss.plan, "objective": ["accuracy"]}, search)) == ["0000", "0001", "0002", "0003"]


def test_the_headline_states_the_objective_and_the_accuracies(by_loss: Results) -> None:
    assert headline(by_loss) == (
        "Best in cross-entropy is scratch (training from random weights) on mobilenetv2_100 with adam at learning rate "
        "0.001 (trial 0001): 0.25 on the validation set, 0.4 on the test set. Its test accuracy is 80.0% (95% interval "
        "71.1 to 86.7; 100 images, 2 seeds), its validation accuracy 80.0% (95% interval 71.1 to 86.7; 100 images, 2 "
        "seeds). It ranks first of 2 finalists by mean validation cross-entropy over final runs."
    )
    unopened = headline(results_of(by_loss.records[:3], objective=["loss"]))
    assert unopened.startswith("Best on validation in cross-entropy is scratch")
    assert "(trial 0001): 0.2 on the validation set. Its validation accuracy is 80.0% (95% interval" in unopened


def test_strategies_are_compared_by_the_objective(by_loss: Results) -> None:
    assert [tally.strategy for tally in tally_by_strategy(by_loss)] == ["scratch", "naive"]
    assert strategy_comparison(by_loss) == (
        "Mean validation cross-entropy of the best finalist, by strategy: scratch 0.25 and naive (full fine-tuning) "
        "0.6."
    )
    table = strategies_table(by_loss)
    assert table.header[:7] == ("strategy", "finals", "trials", "finished", "best", "median", "best accuracy")
    assert table.rows[1][:9] == ("naive", "0.6", "3", "2", "0.3", "0.4", "90.0%", "1", "0")


def test_tables_have_a_column_for_the_objective_before_the_accuracies(by_loss: Results, by_two: Results) -> None:
    header = ("rank", "strategy", "cross-entropy", "validation", "test", "trial")
    assert summary_table(by_loss).header == header
    assert [row[2] for row in summary_table(by_loss).rows] == ["0.25", "0.6"]
    assert [row[1] for row in search_table(by_loss).rows] == ["0.2", "0.3", "0.5", "0.1"]
    assert ranking_table(by_two).header[:5] == ("rank", "strategy", "front", "validation", "trial")
    assert [(row[4], row[2]) for row in ranking_table(by_two).rows] == [
        ("0000", "yes"),
        ("0001", ""),
        ("0003", "yes"),
        ("0002", "yes"),
        ("0004", ""),
    ]


def test_caveats_mention_a_lower_test_loss_and_overlapping_seed_spreads(by_loss: Results) -> None:
    tied = [
        *by_loss.records[:3],
        *some_finals("0001", 0.8, 0.2, 0.6, test_loss=0.9),
        *some_finals("0000", 0.9, 0.5, 0.7, test_loss=0.4),
    ]
    close, lower = caveats(results_of(tied, ["0001", "0000"], objective=["loss"], seeds=2))
    assert close.startswith("Intervals are given for accuracy only; for cross-entropy, compare the spread over seeds.")
    assert "0001 (0.2 to 0.6) and 0000 (0.5 to 0.7), overlap: which one is better is not settled." in close
    assert lower.startswith("On the test set the order would be 0000 (0.4) and 0001 (0.9): the ranking stays")
    (apart,) = caveats(by_loss)
    assert "overlap" not in apart


def test_the_guide_names_the_objective_used_for_selection(by_loss: Results, by_two: Results) -> None:
    assert how_to_read(by_loss)[0].startswith("Trials were selected by cross-entropy on the validation set.")
    assert "by the mean cross-entropy of their final runs" in how_to_read(by_loss)[3]
    assert len(how_to_read(by_loss)) == 4
    assert (
        "the ranking of the finalists used accuracy alone, so a faster but slightly worse recipe"
        in how_to_read(by_two)[4]
    )


# --- two objectives --------------------------------------------------------------------------------------------------


def test_the_pareto_front_is_listed_with_both_values(by_two: Results) -> None:
    assert by_two.pareto_front == {"0000", "0002", "0003"}
    assert pareto_sentence(by_two) == (
        "3 of 4 finished trials are on the Pareto front of accuracy and seconds (no other search run is better in one "
        "without being worse in the other): 0000 (90.0%, 9.0 s), 0003 (80.0%, 5.0 s) and 0002 (70.0%, 2.0 s)."
    )


def test_there_is_no_pareto_front_of_one_objective_or_without_finished_trials(by_loss: Results) -> None:
    assert (by_loss.pareto_front, pareto_sentence(by_loss)) == (frozenset(), None)
    unfinished = results_of([a_run("0000", 0.5, "pruned")], objective=["loss", "seconds"])
    assert pareto_sentence(unfinished) == "No trial finished, so there is no Pareto front of cross-entropy and seconds."


def texts(svg: str) -> list[str]:
    elements = (element for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text"))
    return [(element.text or "").strip() for element in elements]


def figure_texts(results: Results) -> dict[str, list[str]]:
    return {figure.name: texts(figure.svg) for figure in report_figures(results)}


def test_the_cost_figure_marks_the_front_if_seconds_are_an_objective(by_two: Results, by_loss: Results) -> None:
    assert "Pareto front" in figure_texts(by_two)["cost"]
    assert {"0000", "0002", "0003"} <= set(figure_texts(by_two)["cost"])
    assert "Pareto front" not in figure_texts(by_loss)["cost"]
    assert "trade" not in figure_texts(by_two)


def test_two_objectives_other_than_seconds_have_a_figure_of_their_own() -> None:
    records = [
        a_run("0000", 0.9, val_loss=0.5),
        a_run("0001", 0.8, val_loss=0.2),
        a_run("0002", 0.7, val_loss=0.9),
    ]
    results = results_of(records, objective=["accuracy", "loss"])
    shown = figure_texts(results)["trade"]
    assert {"Pareto front", "0000", "0001", "validation cross-entropy (lower is better)"} <= set(shown)
    assert "0002" not in shown
    (figure,) = [figure for figure in report_figures(results) if figure.name == "trade"]
    assert figure.title == "Trade-off between accuracy and cross-entropy"


def test_figures_show_the_objective(by_loss: Results) -> None:
    shown = figure_texts(by_loss)
    label = "validation cross-entropy (lower is better)"
    assert all(label in shown[name] for name in ("strategies", "learning_curves", "cost"))
    assert "scratch: 0.25, mean of 2 final runs" in shown["strategies"]
    assert "1. scratch (0001): validation 80.0%, test 80.0%" in shown["finalists"]


# --- further metrics -------------------------------------------------------------------------------------------------


def test_the_csv_has_all_metrics_that_were_measured() -> None:
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


def test_the_csv_has_the_objectives_and_the_pareto_front(by_two: Results) -> None:
    frame = ranking_frame(by_two)
    assert set(frame["objective"]) == {"accuracy,seconds"}
    assert list(frame["on_front"]) == ["yes", "no", "yes", "yes", "no"]


def test_both_pages_name_the_objective_and_the_pareto_front(by_two: Results, tmp_path: Path) -> None:
    html = render(by_two, tmp_path)
    for page in (html.read_text(), (tmp_path / "report.md").read_text()):
        assert "Ranked by accuracy on the validation set, of one search run each." in page
        assert "on the Pareto front of accuracy and seconds" in page
        assert "objective accuracy and seconds, sampler tpe" in page


def test_the_defaults_of_a_report_are_those_of_a_recipe() -> None:
    recipe = pytest.importorskip("xfer.recipe")
    from sweeps.reporting.formatting import DEFAULT_CHOICES

    fields = recipe.Recipe.__dataclass_fields__
    assert {name: {"name": default} for name, default in recipe.DEFAULT_CHOICES.items()} == {
        name: default for name, default in DEFAULT_CHOICES.items() if isinstance(default, dict)
    }
    for name in ("body_rate", "clip_value", "images_per_class"):
        assert fields[name].default == DEFAULT_CHOICES[name]
    described = {"strategy", "optimizer", "schedule", "augmentation", "mixing", "loss", *DEFAULT_CHOICES}
    assert set(recipe.CHOICE_TABLES) <= described
