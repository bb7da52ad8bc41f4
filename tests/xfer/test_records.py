"""What came of a run is plain data: to JSON and back without loss."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfer.records import (
    Epoch,
    Evaluation,
    Record,
    as_dict,
    epoch_from,
    evaluation_from,
    record_from,
)

number = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)
measured = st.none() | number
epochs = st.builds(
    Epoch,
    **{field.name: number for field in dataclasses.fields(Epoch) if field.default is dataclasses.MISSING},
    **{field.name: measured for field in dataclasses.fields(Epoch) if field.default is not dataclasses.MISSING},
)
hits = st.lists(st.tuples(counts, st.booleans()), min_size=1, max_size=8)
evaluations = st.builds(
    lambda part, loss, hits: Evaluation(part, loss, *map(tuple, zip(*hits, strict=True))),
    st.sampled_from(["train", "val", "test"]),
    number,
    hits,
)
plain = st.recursive(st.none() | st.booleans() | counts | number | st.text(), lambda each: st.lists(each), max_leaves=5)
records = st.builds(
    Record,
    trial=st.text(),
    phase=st.sampled_from(["search", "final"]),
    key=st.text(),
    id=st.text(),
    recipe=st.dictionaries(st.text(), plain | st.dictionaries(st.text(), plain, max_size=3), max_size=3),
    status=st.sampled_from(["finished", "pruned", "failed"]),
    epochs=st.lists(epochs, max_size=3).map(tuple),
    parameters=st.none() | counts,
    trainable_parameters=st.none() | counts,
    seconds=number,
    val=st.none() | evaluations,
    test=st.none() | evaluations,
    error=st.none() | st.text(),
    resumed_at=st.lists(counts, max_size=3).map(tuple),
)


def through_json(value):
    return json.loads(json.dumps(as_dict(value), allow_nan=False))


@given(value=epochs)
def test_any_epoch_comes_back_equal(value):
    assert epoch_from(through_json(value)) == value


@given(value=evaluations)
def test_any_evaluation_comes_back_equal(value):
    found = evaluation_from(through_json(value))
    assert found == value
    assert found.accuracy == value.accuracy == sum(value.correct) / len(value.images)


@settings(max_examples=50)
@given(value=records)
def test_any_record_comes_back_equal(value):
    found = record_from(through_json(value))
    assert found == value
    assert as_dict(found) == as_dict(value)


def test_the_record_of_a_real_run_comes_back_equal(record):
    assert record.status == "finished"
    assert record_from(through_json(record)) == record


def test_correctness_takes_one_character_per_image():
    found = as_dict(Evaluation("val", 0.5, (7, 8, 9), (True, False, True)))
    assert found == {"part": "val", "loss": 0.5, "images": (7, 8, 9), "correct": "101"}


def test_accuracy_is_the_share_of_right_answers():
    assert Evaluation("val", 0.5, (7, 8, 9, 10), (True, False, True, True)).accuracy == 0.75


def test_the_value_that_counts_is_that_of_the_last_epoch(record):
    assert record.val_accuracy == record.epochs[-1].val_accuracy
    assert dataclasses.replace(record, epochs=()).val_accuracy is None


@pytest.mark.parametrize("field", ["trial", "epochs", "val"])
def test_a_record_with_a_hole_is_not_taken_for_one(record, field):
    holed = through_json(record)
    del holed[field]
    with pytest.raises((KeyError, TypeError)):
        record_from(holed)
