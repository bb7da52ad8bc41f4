"""Records survive a round trip through JSON without loss."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfer.records import (
    SELECTION_FIELDS,
    CorruptionScore,
    Epoch,
    Evaluation,
    Record,
    as_dict,
    epoch_from_dict,
    evaluation_from_dict,
    record_from_dict,
)

number = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**40)
measured = st.none() | number
norms = st.lists(number, max_size=4).map(tuple)
cells = st.lists(st.tuples(counts, counts, counts), max_size=4).map(tuple)
noisy = st.builds(CorruptionScore, st.text(), st.integers(1, 5), st.integers(1, 2**40), counts)


def fields_of(kind, required, optional):
    """A strategy for every field, `optional` for fields with a default."""
    fields = dataclasses.fields(kind)
    return {field.name: required if field.default is dataclasses.MISSING else optional for field in fields}


epochs = st.builds(Epoch, **{**fields_of(Epoch, number, measured), "gradient_norms": norms})
hits = st.lists(st.tuples(counts, st.booleans()), min_size=1, max_size=8)
evaluations = st.builds(
    lambda part, loss, hits, **options: Evaluation(part, loss, *map(tuple, zip(*hits, strict=True)), **options),
    st.sampled_from(["train", "val", "test"]),
    number,
    hits,
    top5_accuracy=measured,
    balanced_accuracy=measured,
    calibration_error=measured,
    confusion=cells,
    noisy=st.lists(noisy, max_size=3).map(tuple),
    flip_correct=st.lists(st.booleans(), max_size=8).map(tuple),
)
plain = st.recursive(
    st.none() | st.booleans() | counts | number | st.text(), lambda children: st.lists(children), max_leaves=5
)
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
    start_accuracy=measured,
    flops=st.none() | counts,
)


def through_json(value):
    return json.loads(json.dumps(as_dict(value), allow_nan=False))


@given(value=epochs)
def test_any_epoch_survives_the_round_trip(value):
    assert epoch_from_dict(through_json(value)) == value


@given(value=evaluations)
def test_any_evaluation_survives_the_round_trip(value):
    restored = evaluation_from_dict(through_json(value))
    assert restored == value
    assert restored.accuracy == value.accuracy == sum(value.correct) / len(value.images)


@settings(max_examples=50)
@given(value=records)
def test_any_record_survives_the_round_trip(value):
    restored = record_from_dict(through_json(value))
    assert restored == value
    assert as_dict(restored) == as_dict(value)


def test_the_record_of_a_real_run_survives_the_round_trip(record):
    assert record.status == "finished"
    assert record_from_dict(through_json(record)) == record


def test_correctness_takes_one_character_per_image():
    restored = as_dict(Evaluation("val", 0.5, (7, 8, 9), (True, False, True)))
    unmeasured = {"top5_accuracy": None, "balanced_accuracy": None, "calibration_error": None}
    assert restored == {"part": "val", "loss": 0.5, "images": (7, 8, 9), "correct": "101", **unmeasured}


def test_empty_lists_are_left_out(record):
    plain = as_dict(dataclasses.replace(record.epochs[0], gradient_norms=()))
    assert "gradient_norms" not in plain
    assert as_dict(dataclasses.replace(record.epochs[0], gradient_norms=(1.5, 0.5)))["gradient_norms"] == [1.5, 0.5]
    assert set(SELECTION_FIELDS).isdisjoint(as_dict(dataclasses.replace(record.epochs[0], **NO_SELECTION)))
    kept = dataclasses.replace(record.epochs[0], kept="averaged", raw_val_accuracy=0.0)
    assert (as_dict(kept)["kept"], as_dict(kept)["raw_val_accuracy"]) == ("averaged", 0.0)
    plain = as_dict(Evaluation("val", 0.5, (7,), (True,)))
    assert {"confusion", "noisy", "flip_correct"}.isdisjoint(plain)


def test_correctness_with_flips_is_stored_like_correctness():
    evaluation = Evaluation("test", 0.5, (7, 8, 9), (True, False, True), flip_correct=(True, True, False))
    assert as_dict(evaluation)["flip_correct"] == "110"
    assert evaluation_from_dict(as_dict(evaluation)) == evaluation
    assert evaluation.flip_accuracy == 2 / 3
    assert Evaluation("test", 0.5, (7,), (True,)).flip_accuracy is None


NO_SELECTION = dict.fromkeys(SELECTION_FIELDS)
NEW_FIELDS = {
    Epoch: {
        *("peak_memory_mb", "val_top5_accuracy", "val_balanced_accuracy", "val_calibration_error"),
        *("val_noisy_accuracy", "distance", "gradient_norms"),
        *SELECTION_FIELDS,
    },
    Evaluation: {"top5_accuracy", "balanced_accuracy", "calibration_error", "confusion", "noisy", "flip_correct"},
    Record: {"start_accuracy", "flops"},
}
"""Fields that the first version did not write."""


def as_first_written(value):
    """The plain data that the first version wrote."""
    plain = {name: content for name, content in as_dict(value).items() if name not in NEW_FIELDS[type(value)]}
    if isinstance(value, Record):
        plain["epochs"] = [as_first_written(epoch) for epoch in value.epochs]
        plain |= {part: getattr(value, part) and as_first_written(getattr(value, part)) for part in ("val", "test")}
    return json.loads(json.dumps(plain))


@settings(max_examples=50)
@given(value=records)
def test_records_of_the_first_version_can_still_be_read(value):
    restored = record_from_dict(as_first_written(value))
    assert (restored.start_accuracy, restored.flops) == (None, None)
    for part in (restored.val, restored.test):
        assert part is None or (part.top5_accuracy, part.confusion, part.noisy) == (None, (), ())
    for epoch, before in zip(restored.epochs, value.epochs, strict=True):
        assert epoch == dataclasses.replace(
            before, **{name: () if name == "gradient_norms" else None for name in NEW_FIELDS[Epoch]}
        )
    assert [epoch.val_accuracy for epoch in restored.epochs] == [epoch.val_accuracy for epoch in value.epochs]


def test_accuracy_is_the_fraction_of_correct_predictions():
    assert Evaluation("val", 0.5, (7, 8, 9, 10), (True, False, True, True)).accuracy == 0.75


def test_noisy_accuracy_weights_kinds_equally_and_severities_equally_within_a_kind():
    noisy = (CorruptionScore("blur", 1, 4, 4), CorruptionScore("blur", 5, 100, 50), CorruptionScore("jpeg", 3, 10, 1))
    assert noisy[1].accuracy == 0.5
    restored = Evaluation("val", 0.5, (7,), (True,), noisy=noisy)
    assert restored.noisy_accuracy == pytest.approx(((1.0 + 0.5) / 2 + 0.1) / 2)
    assert Evaluation("val", 0.5, (7,), (True,)).noisy_accuracy is None


def test_the_gap_is_training_minus_validation_accuracy(record):
    epoch = dataclasses.replace(record.epochs[0], train_accuracy=0.9, val_accuracy=0.6)
    assert epoch.gap == pytest.approx(0.3)


def test_the_validation_accuracy_of_a_record_is_that_of_the_last_epoch(record):
    assert record.val_accuracy == record.epochs[-1].val_accuracy
    assert dataclasses.replace(record, epochs=()).val_accuracy is None


def test_what_a_record_kept_is_what_its_last_epoch_kept(record):
    first = dataclasses.replace(record.epochs[0], kept=None)
    last = dataclasses.replace(record.epochs[-1], kept="start")
    assert dataclasses.replace(record, epochs=(first, last)).kept == "start"
    assert dataclasses.replace(record, epochs=(first,)).kept is None
    assert dataclasses.replace(record, epochs=()).kept is None


@pytest.mark.parametrize("field", ["trial", "epochs", "val"])
def test_a_record_without_a_required_field_is_an_error(record, field):
    incomplete = through_json(record)
    del incomplete[field]
    with pytest.raises((KeyError, TypeError)):
        record_from_dict(incomplete)
