"""Objectives: what is measured, which way is better, and who is beaten by nobody."""

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
def test_every_objective_is_read_off_the_last_epoch_and_cost_off_all_of_them(
    name: str, value: float, score: float, on_test: float | None
) -> None:
    objective = OBJECTIVES[name]
    assert objective.value(EPOCHS) == pytest.approx(value)
    assert objective.score(EPOCHS) == pytest.approx(score)
    assert objective.on(TEST) == (None if on_test is None else pytest.approx(on_test))


def test_these_are_all_the_objectives_there_are() -> None:
    assert list(OBJECTIVES) == ["accuracy", "balanced_accuracy", "noisy_accuracy", "loss", "seconds"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_entry_is_named_as_it_stands_in_the_table_and_read_from_a_field_of_an_epoch(name: str) -> None:
    objective = OBJECTIVES[name]
    assert objective.name == objective.measure.__name__ == name
    assert objective.metric in {field.name for field in dataclasses.fields(Epoch)}
    assert objective.measure.__doc__


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_score_is_better_the_higher_it_is_and_turns_back_into_its_value(name: str) -> None:
    objective = OBJECTIVES[name]
    better, worse = (0.9, 0.1) if objective.higher_is_better else (0.1, 0.9)
    assert objective.to_score(better) > objective.to_score(worse)
    assert objective.to_score(objective.to_score(0.3)) == 0.3


def test_there_is_a_score_after_every_epoch() -> None:
    assert OBJECTIVES["loss"].scores(EPOCHS) == [-1.0, -0.5, -0.25]
    assert OBJECTIVES["seconds"].scores(EPOCHS) == [-3.0, -7.0, -13.0]
    assert ACCURACY.scores(()) == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_before_the_first_epoch_nothing_is_known(name: str) -> None:
    assert OBJECTIVES[name].value(()) is OBJECTIVES[name].score(()) is None


def test_what_was_not_measured_or_is_no_number_is_not_known() -> None:
    old = dataclasses.replace(EPOCHS[-1], val_balanced_accuracy=None, val_loss=math.nan)
    assert OBJECTIVES["balanced_accuracy"].score([old]) is None
    assert OBJECTIVES["loss"].score([old]) is None
    assert OBJECTIVES["accuracy"].score([old]) == 0.4


# --- as a person names them ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("loss", ["loss"]),
        (" balanced_accuracy ", ["balanced_accuracy"]),
        ("accuracy,seconds", ["accuracy", "seconds"]),
        ("noisy_accuracy, accuracy", ["noisy_accuracy", "accuracy"]),
    ],
)
def test_objectives_are_named_the_one_that_decides_first(text: str, names: list[str]) -> None:
    assert [objective.name for objective in parse_objectives(text)] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"an objective is wanted: accuracy, .*, or two as in accuracy,seconds"),
        (" , ", r"an objective is wanted"),
        ("acuracy", r"unknown objective 'acuracy': did you mean accuracy.*Known: accuracy, balanced_accuracy, "),
        ("accuracy,speed", r"unknown objective 'speed'"),
        ("seconds", r"the fastest network is one that learns nothing.*as in accuracy,seconds"),
        ("seconds,loss", r"seconds cannot decide.*as in loss,seconds"),
        ("loss,loss", r"loss is named twice"),
        ("accuracy,loss,seconds", r"3 at once leave hardly a trial that is not best in something.*the two that matter"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_objectives(text)


# --- the Pareto front ------------------------------------------------------------------------------------------------

NEVER = -math.inf


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
        ([(NEVER, -1.0), (0.5, -2.0), (NEVER, -3.0)], [True, True, False]),
        ([(0.5,), (0.7,), (0.7,)], [False, True, True]),
    ],
)
def test_the_front_is_whoever_is_beaten_by_nobody(scores: list[tuple[float, ...]], front: list[bool]) -> None:
    assert pareto_mask(scores) == front


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=15))
def test_a_front_holds_the_best_in_each_and_covers_everybody_else(scores: list[tuple[int, int]]) -> None:
    front = {point for point, best in zip(scores, pareto_mask(scores), strict=True) if best}
    assert all(any(a >= x and b >= y for a, b in front) for x, y in scores)
    if scores:
        assert max(scores) in front
        assert max(scores, key=lambda point: (point[1], point[0])) in front


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=15), st.randoms())
def test_the_order_of_points_does_not_matter(scores: list[tuple[int, int]], chance: object) -> None:
    shuffled = sorted(scores, key=lambda _: chance.random())  # type: ignore[attr-defined]
    found = dict(zip(shuffled, pareto_mask(shuffled), strict=True))
    assert [found[point] for point in scores] == pareto_mask(scores)


def test_neither_torch_nor_numpy_is_needed() -> None:
    code = "import sys, xfer.objectives; sys.exit(bool({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
