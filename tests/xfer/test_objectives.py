"""Objectives: what is measured, which direction is better, and the Pareto front."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfer.objectives import ACCURACY, OBJECTIVES, pareto_mask, parse_objectives
from xfer.records import CorruptionScore, Epoch, Evaluation

EPOCHS = tuple(
    Epoch(
        epoch=number,
        train_loss=0.9,
        train_accuracy=0.4,
        val_loss=1 / number,
        val_accuracy=number / 10,
        learning_rate=1e-3,
        gradient_norm=2.0,
        seconds=2.0 + number,
        images_per_second=50.0,
        val_balanced_accuracy=number / 20,
        val_noisy_accuracy=number / 40,
    )
    for number in (1, 2, 4)
)
TEST = Evaluation(
    *("test", 0.7, (0, 1, 2, 3), (True, True, True, False)),
    balanced_accuracy=0.6,
    noisy=(CorruptionScore("blur", 1, 2, 1), CorruptionScore("grey", 1, 4, 1)),
)


@pytest.mark.parametrize(
    ("name", "value", "score", "on_test"),
    [
        ("accuracy", 0.4, 0.4, 0.75),
        ("balanced_accuracy", 0.2, 0.2, 0.6),
        ("noisy_accuracy", 0.1, 0.1, 0.375),
        ("loss", 0.25, -0.25, 0.7),
        ("seconds", 13.0, -13.0, None),
    ],
)
def test_objectives_are_read_from_the_last_epoch_and_seconds_from_all_epochs(
    name: str, value: float, score: float, on_test: float | None
) -> None:
    objective = OBJECTIVES[name]
    assert objective.value(EPOCHS) == pytest.approx(value)
    assert objective.score(EPOCHS) == pytest.approx(score)
    assert objective.on(TEST) == (None if on_test is None else pytest.approx(on_test))


def test_there_are_no_other_objectives() -> None:
    assert list(OBJECTIVES) == ["accuracy", "balanced_accuracy", "noisy_accuracy", "loss", "seconds"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_entry_has_its_key_as_name_and_a_field_of_an_epoch_as_metric(name: str) -> None:
    objective = OBJECTIVES[name]
    assert objective.name == objective.measure.__name__ == name
    assert objective.metric in {field.name for field in dataclasses.fields(Epoch)}
    assert objective.measure.__doc__


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_higher_score_is_better_and_converts_back_to_its_value(name: str) -> None:
    objective = OBJECTIVES[name]
    better, worse = (0.9, 0.1) if objective.higher_is_better else (0.1, 0.9)
    assert objective.to_score(better) > objective.to_score(worse)
    assert objective.to_score(objective.to_score(0.3)) == 0.3


def test_there_is_a_score_after_every_epoch() -> None:
    assert OBJECTIVES["loss"].scores(EPOCHS) == [-1.0, -0.5, -0.25]
    assert OBJECTIVES["seconds"].scores(EPOCHS) == [-3.0, -7.0, -13.0]
    assert ACCURACY.scores(()) == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_there_is_no_value_before_the_first_epoch(name: str) -> None:
    assert OBJECTIVES[name].value(()) is OBJECTIVES[name].score(()) is None


def test_a_missing_or_nan_measurement_has_no_score() -> None:
    old = dataclasses.replace(EPOCHS[-1], val_balanced_accuracy=None, val_loss=math.nan)
    assert OBJECTIVES["balanced_accuracy"].score([old]) is None
    assert OBJECTIVES["loss"].score([old]) is None
    assert OBJECTIVES["accuracy"].score([old]) == 0.4


# Parsing


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("loss", ["loss"]),
        (" balanced_accuracy ", ["balanced_accuracy"]),
        ("accuracy,seconds", ["accuracy", "seconds"]),
        ("noisy_accuracy, accuracy", ["noisy_accuracy", "accuracy"]),
    ],
)
def test_the_deciding_objective_is_named_first(text: str, names: list[str]) -> None:
    assert [objective.name for objective in parse_objectives(text)] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"no objective given: use one of accuracy, .*, or two as in accuracy,seconds"),
        (" , ", r"no objective given"),
        ("acuracy", r"unknown objective 'acuracy': did you mean accuracy.*Known: accuracy, balanced_accuracy, "),
        ("accuracy,speed", r"unknown objective 'speed'"),
        ("seconds", r"the fastest network learns nothing.*as in accuracy,seconds"),
        ("seconds,loss", r"seconds cannot be the first objective.*as in loss,seconds"),
        ("loss,loss", r"loss is given twice"),
        ("accuracy,loss,seconds", r"at most 2 objectives, got 3.*the two that matter"),
    ],
)
def test_an_invalid_list_of_objectives_is_refused_with_a_correction(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_objectives(text)


# The Pareto front

WORST = -math.inf


@pytest.mark.parametrize(
    ("scores", "front"),
    [
        ([], []),
        ([(0.5, -1.0)], [True]),
        ([(0.9, -9.0), (0.8, -5.0), (0.7, -1.0)], [True, True, True]),
        ([(0.9, -1.0), (0.8, -1.0), (0.9, -2.0)], [True, False, False]),
        ([(0.9, -9.0), (0.8, -9.5), (0.85, -8.0), (0.85, -8.5)], [True, False, True, False]),
        ([(0.7, -3.0), (0.7, -3.0)], [True, True]),
        ([(0.7, -3.0), (0.7, -3.0), (0.8, -3.0)], [False, False, True]),
        ([(WORST, -1.0), (0.5, -2.0), (WORST, -3.0)], [True, True, False]),
        ([(0.5,), (0.7,), (0.7,)], [False, True, True]),
    ],
)
def test_the_front_is_the_set_of_points_that_no_other_dominates(
    scores: list[tuple[float, ...]], front: list[bool]
) -> None:
    assert pareto_mask(scores) == front


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=15))
def test_a_front_contains_the_best_in_each_objective_and_covers_all_other_points(scores: list[tuple[int, int]]) -> None:
    front = {point for point, best in zip(scores, pareto_mask(scores), strict=True) if best}
    assert all(any(a >= x and b >= y for a, b in front) for x, y in scores)
    if scores:
        assert max(scores) in front
        assert max(scores, key=lambda point: (point[1], point[0])) in front


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=15), st.randoms())
def test_the_order_of_points_does_not_matter(scores: list[tuple[int, int]], random: object) -> None:
    shuffled = sorted(scores, key=lambda _: random.random())  # type: ignore[attr-defined]
    on_front = dict(zip(shuffled, pareto_mask(shuffled), strict=True))
    assert [on_front[point] for point in scores] == pareto_mask(scores)


def test_objectives_load_neither_torch_nor_numpy() -> None:
    code = "import sys, xfer.objectives; sys.exit(bool({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
