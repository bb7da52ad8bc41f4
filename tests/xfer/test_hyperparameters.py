"""The table of hyperparameters: in step with the tables of xfer.methods, and readable without torch."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from xfer.choices import default_parameters
from xfer.hyperparameters import (
    CHOICES,
    CLOSED_FORM_HEADS,
    NUMBERS,
    OPTIMIZERS,
    PARAMETERS,
    Categorical,
    Distribution,
    Number,
    Range,
    default_choice,
    default_number,
    search_range,
)
from xfer.recipe import CHOICE_TABLES

ENTRY_PARAMETERS = [
    (kind, name, parameter)
    for kind, table in CHOICE_TABLES.items()
    for name in table
    for parameter in default_parameters(table[name])
]


def values(distribution: Distribution) -> tuple[object, ...]:
    return distribution.values if isinstance(distribution, Categorical) else (distribution.low, distribution.high)


def test_every_table_has_a_row_with_its_entries_and_their_parameters() -> None:
    assert list(CHOICES) == list(CHOICE_TABLES)
    for kind, table in CHOICE_TABLES.items():
        assert CHOICES[kind].entries == {name: tuple(default_parameters(entry)) for name, entry in table.items()}, kind


def test_what_a_sweep_tries_by_default_exists() -> None:
    for kind, row in CHOICES.items():
        assert set(row.search) <= set(CHOICE_TABLES[kind])


def test_every_parameter_has_a_row_and_every_row_an_entry() -> None:
    assert set(PARAMETERS) == {parameter for *_, parameter in ENTRY_PARAMETERS}
    for parameter, row in PARAMETERS.items():
        owners = {name for _, name, other in ENTRY_PARAMETERS if other == parameter}
        assert (row.search is None) == bool(row.search_by_entry), parameter
        assert not row.search_by_entry or set(row.search_by_entry) == owners


def test_parameter_names_are_unique_across_tables_and_differ_from_the_numbers_of_a_recipe() -> None:
    counts = Counter(parameter for kind, parameter in {(kind, parameter) for kind, _, parameter in ENTRY_PARAMETERS})
    assert [name for name, count in counts.items() if count > 1] == []
    assert set(counts) & {*NUMBERS, *CHOICES, "backbone", "weights", "seed"} == set()


@pytest.mark.parametrize(("kind", "name", "parameter"), ENTRY_PARAMETERS)
def test_an_entrys_default_lies_within_its_search_range(kind: str, name: str, parameter: str) -> None:
    distribution, default = search_range(name, parameter), default_parameters(CHOICE_TABLES[kind][name])[parameter]
    if isinstance(distribution, Categorical):
        assert default in distribution.values
    else:
        assert isinstance(default, int | float)
        assert distribution.low <= default <= distribution.high


@pytest.mark.parametrize(("kind", "name", "parameter"), ENTRY_PARAMETERS)
def test_an_entry_accepts_every_value_within_the_limits(kind: str, name: str, parameter: str) -> None:
    row = PARAMETERS[parameter]
    for value in row.limits or (1, 1_000):
        CHOICE_TABLES[kind][name](**{parameter: value})


@pytest.mark.parametrize(("kind", "name", "parameter"), ENTRY_PARAMETERS)
def test_a_parameter_is_an_integer_exactly_if_its_default_is(kind: str, name: str, parameter: str) -> None:
    default = default_parameters(CHOICE_TABLES[kind][name])[parameter]
    assert PARAMETERS[parameter].is_integer == isinstance(default, int)


@pytest.mark.parametrize(("name", "row"), (NUMBERS | PARAMETERS).items())
def test_a_row_does_not_contradict_itself(name: str, row: Number) -> None:
    for distribution in filter(None, (row.search, *row.search_by_entry.values())):
        if isinstance(distribution, Range):
            assert distribution.log == row.log
            assert distribution.is_integer == row.is_integer
        for value in values(distribution):
            assert row.optional if value is None else isinstance(value, int) or not row.is_integer
            if row.limits is not None and isinstance(value, int | float):
                assert row.limits[0] <= value <= row.limits[1]
    if row.limits is not None:
        assert type(row.limits[0]) is type(row.limits[1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizers_default_rate_leaves_room_for_training_a_head_alone(optimizer: str) -> None:
    row = OPTIMIZERS[optimizer]
    assert row.learning_rates.low < row.default_learning_rate
    assert 10 * row.default_learning_rate <= row.learning_rates.high


def test_the_defaults_are_what_a_search_begins_with() -> None:
    assert {kind: default_choice(kind) for kind in ("strategy", "optimizer", "schedule")} == {
        "strategy": "clip",
        "optimizer": "sgd",
        "schedule": "onecycle",
    }
    assert default_number("weight_decay") == 1e-4
    assert [default_number(name) for name in ("learning_rate", "batch_size", "body_rate")] == [0.01, 16, 1.0]
    assert [default_number(name) for name in ("clip_norm", "clip_value", "images_per_class")] == [None] * 3


def test_the_table_is_imported_without_torch() -> None:
    code = "import xfer.hyperparameters, sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not {"torch", "torchvision", "timm", "numpy"} & set(result.stdout.split())


@pytest.mark.parametrize(
    ("distribution", "value", "nearest"),
    [
        (Categorical((16, 32)), 32, 32),
        (Categorical((16, 32)), 64, 16),
        (Categorical((None, 1.0)), None, None),
        (Range(1, 3), 9, 3),
        (Range(1, 4), None, 2),
        (Range(1e-4, 1e-2, log=True), None, pytest.approx(1e-3)),
        (Range(0.25, 0.75), "x", 0.5),
    ],
)
def test_a_distribution_returns_the_nearest_of_its_values(
    distribution: Distribution, value: float | str | None, nearest: object
) -> None:
    assert distribution.nearest(value) == nearest


def test_distributions_print_as_they_are_written_on_the_command_line() -> None:
    assert str(Categorical((None, 0.5, "sgd"))) == "none, 0.5, sgd"
    assert str(Range(1e-4, 1e-2, log=True)) == "0.0001..0.01 log"
    assert str(Range(1, 3)) == "1..3"


def test_the_heads_in_closed_form_are_the_strategies_without_gradient_steps() -> None:
    assert {name for name, strategy in CHOICE_TABLES["strategy"].items() if not strategy().steps} == CLOSED_FORM_HEADS
