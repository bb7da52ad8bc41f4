"""Distributions: parsed as written, integers where only integers make sense, and within the limits."""

from __future__ import annotations

import pytest

from sweeps.engine.search_space.defaults import AXES, LEARNING_RATE_RANGES, PARAMETER_RANGES
from sweeps.engine.search_space.distributions import NUMERIC_AXES, parse_distribution
from xfer.hyperparameters import Categorical, Distribution, Range
from xfer.recipe import CHOICE_TABLES


@pytest.mark.parametrize(
    ("axis", "text", "distribution"),
    [
        ("optimizer", "sgd,ranger", Categorical(("sgd", "ranger"))),
        ("optimizer", " sgd , sgd ", Categorical(("sgd",))),
        ("strategy", "clip,full_finetune,naive", Categorical(("clip", "naive"))),
        ("clip_norm", "none,0.5,1.0", Categorical((None, 0.5, 1.0))),
        ("clip_norm", "NONE,2", Categorical((None, 2))),
        ("clip_value", "0.1..0.5", Range(0.1, 0.5)),
        ("batch_size", "16..64", Range(16, 64)),
        ("images_per_class", "none,10,50", Categorical((None, 10, 50))),
        ("weight_decay", "1e-6..1e-3", Range(1e-6, 1e-3, log=True)),
        ("weight_decay", "0..0.1", Range(0, 0.1)),
        ("body_rate", "0.01..1", Range(0.01, 1.0, log=True)),
        ("blocks", "2..5", Range(2, 5)),
        ("strength", "1e-3..1", Range(1e-3, 1.0, log=True)),
        ("decay", "0.5..1", Range(0.5, 1.0)),
    ],
)
def test_values_are_parsed_as_written(axis: str, text: str, distribution: Distribution) -> None:
    assert parse_distribution(axis, text) == distribution


@pytest.mark.parametrize(
    ("axis", "text", "message"),
    [
        # unknown names: the closest known names are offered
        ("strategy", "clp", r"unknown strategy 'clp': did you mean clip\?"),
        ("strategy", "full_finetunning", r"unknown strategy 'full_finetunning': did you mean full_finetune\?"),
        ("optimizer", "adan", r"unknown optimizer 'adan': did you mean adam"),
        ("loss", "label_smoothin", r"unknown loss 'label_smoothin': did you mean label_smoothing"),
        ("embedding_loss", "tripplet", r"unknown embedding_loss 'tripplet': did you mean triplet\? Known: none, con"),
        ("head", "mpl", r"unknown head 'mpl': did you mean mlp\? Known: linear, mlp, cosine"),
        ("colour", "gray", r"unknown colour 'gray': did you mean grey"),
        ("batch_norm", "froze", r"unknown batch_norm 'froze': did you mean frozen"),
        # syntax
        ("learning_rate", "1e-2..1e-4", r"learning_rate=1e-2..1e-4 is not a range: give two numbers, the lower first"),
        ("learning_rate", "1e-4..1e-3..1e-2", r"is not a range: .* as in 1e-4..1e-2"),
        ("learning_rate", "1e-4..nan", r"is not a range"),
        ("clip_norm", "none..1", r"clip_norm=none..1 is not a range"),
        ("optimizer", "sgd..adam", r"optimizer=sgd..adam is not a range"),
        ("learning_rate", "fast", r"learning_rate=fast: must be a number$"),
        ("clip_norm", "off", r"clip_norm=off: must be a number or none"),
        ("images_per_class", "all", r"images_per_class=all: must be a number or none"),
        ("learning_rate", "1e-4..", r"learning_rate= needs a value"),
        ("batch_size", "16,,32", r"batch_size= needs a value"),
        # integers
        ("batch_size", "16.5", r"batch_size=16.5: must be an integer"),
        ("batch_size", "16..32.5", r"batch_size=32.5: must be an integer"),
        ("batch_size", "none", r"batch_size=None: must be an integer"),
        ("images_per_class", "2.5", r"images_per_class=2.5: must be an integer"),
        ("freeze_epochs", "1.5", r"freeze_epochs=1.5: must be an integer"),
        ("rank", "none", r"rank=None: must be an integer"),
        # limits
        ("learning_rate", "0", r"learning_rate=0: must be between 1e-09 and 100"),
        ("learning_rate", "nan", r"learning_rate=nan: must be between"),
        ("learning_rate", "inf", r"learning_rate=inf: must be between"),
        ("learning_rate", "none", r"learning_rate=None: must be between"),
        ("learning_rate", "1e-4..1e3", r"learning_rate=1000.0: must be between"),
        ("batch_size", "1", r"batch_size=1: must be between 2 and 65536"),
        ("batch_size", "1000000000", r"batch_size=1000000000: must be between"),
        ("weight_decay", "-1e-4", r"weight_decay=-0.0001: must be between 0 and 10"),
        ("body_rate", "2", r"body_rate=2: must be between 1e-06 and 1"),
        ("clip_norm", "none,0", r"clip_norm=0: must be between"),
        ("clip_norm", "-1..1", r"clip_norm=-1(\.0)?: must be between"),
        ("clip_value", "0", r"clip_value=0: must be between"),
        ("images_per_class", "0", r"images_per_class=0: must be between 1 and"),
        ("alpha", "nan", r"alpha=nan: must be between"),
        ("smoothing", "none", r"smoothing=None: must be between 0 and 0.99"),
    ],
)
def test_invalid_values_are_refused_with_the_reason(axis: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_distribution(axis, text)


@pytest.mark.parametrize("axis", [axis for axis, row in NUMERIC_AXES.items() if row.limits is not None])
def test_the_limits_themselves_are_accepted_and_nothing_beyond_them(axis: str) -> None:
    row = NUMERIC_AXES[axis]
    assert row.limits is not None
    low, high = row.limits
    write = (lambda value: f"{value:.0f}") if row.is_integer else repr
    for value in row.limits:
        assert parse_distribution(axis, write(value)) == Categorical((value,))
    for value in (low - 1, 2 * high + 1):
        with pytest.raises(ValueError, match=f"{axis}=.*: must be between"):
            parse_distribution(axis, write(value))


@pytest.mark.parametrize(
    ("axis", "distribution"),
    [
        *((axis, distribution) for axis, distribution in AXES.items() if axis not in CHOICE_TABLES),
        *((name.rpartition(".")[2], distribution) for name, distribution in PARAMETER_RANGES.items()),
        *(("learning_rate", distribution) for distribution in LEARNING_RATE_RANGES.values()),
    ],
    ids=str,
)
def test_every_default_can_be_written_on_the_command_line(axis: str, distribution: Distribution) -> None:
    text = str(distribution).removesuffix(" log").replace(" ", "")
    assert parse_distribution(axis, text) == distribution
