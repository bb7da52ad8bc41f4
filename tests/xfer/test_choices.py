"""Names and parameters of a table's entry."""

from __future__ import annotations

import json

import pytest

from xfer.choices import Choice, choose, default_parameters, unknown_name_message
from xfer.recipe import CHOICE_TABLES

ENTRIES = [(kind, name) for kind, table in CHOICE_TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_has_its_functions_name(kind, name):
    assert CHOICE_TABLES[kind][name].__name__ == name
    assert choose(kind, CHOICE_TABLES[kind], name).name == name


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_is_described_in_a_sentence(kind, name):
    assert "." in CHOICE_TABLES[kind][name].__doc__


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_parameter_is_plain_data_that_survives_json(kind, name):
    choice = choose(kind, CHOICE_TABLES[kind], name)
    assert all(type(value) in (int, float, str, bool) for _, value in choice.values)
    loaded = json.loads(json.dumps(choice.as_dict()))
    assert choose(kind, CHOICE_TABLES[kind], **loaded) == choice


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_an_unknown_parameter_gets_the_nearest_names(kind, name):
    for parameter in default_parameters(CHOICE_TABLES[kind][name]):
        with pytest.raises(
            ValueError, match=f"unknown parameter of {kind} {name} '{parameter}s': did you mean {parameter}"
        ):
            choose(kind, CHOICE_TABLES[kind], name, **{f"{parameter}s": 1})
    with pytest.raises(ValueError, match=f"unknown parameter of {kind} {name} 'qqqq'"):
        choose(kind, CHOICE_TABLES[kind], name, qqqq=1)


def table(first, second=2, third="x"):
    return first, second, third


def test_parameters_are_the_arguments_that_have_a_default():
    assert default_parameters(table) == {"second": 2, "third": "x"}


def test_a_choice_has_every_parameter_in_order_and_builds():
    choice = choose("table", {"table": table}, "table", third="y")
    assert choice == Choice("table", (("second", 2), ("third", "y")))
    assert str(choice) == "table(second=2, third=y)"
    assert choice.as_dict() == {"name": "table", "second": 2, "third": "y"}
    assert choice.build({"table": table}, "given") == ("given", 2, "y")
    assert str(choose("mixing", CHOICE_TABLES["mixing"], "none")) == "none"


def test_an_unknown_name_gets_the_nearest_names():
    assert unknown_name_message("optimizer", "rangr", ["sgd", "ranger"]) == (
        "unknown optimizer 'rangr': did you mean ranger? Known: sgd, ranger"
    )
    assert unknown_name_message("optimizer", "zzz", []) == "unknown optimizer 'zzz'. Known: none"
