"""Domains: written as a person means them, whole where only whole numbers make sense, and within reason."""

from __future__ import annotations

import pytest

from sweeps.engine.search_space.distributions import (
    INTEGER_AXES,
    LOG_SCALE_AXES,
    PARAMETER_LIMITS,
    Categorical,
    Distribution,
    Range,
    domain_values,
    parse_distribution,
)
from sweeps.engine.search_space.space import AXES, LEARNING_RATE_RANGES, PARAMETER_RANGES
from tests.engine.random_configs import ENTRY_PARAMETERS
from xfer.choices import default_parameters
from xfer.recipe import CHOICE_TABLES, LIMITS
from xfer.recipe import INTEGER_FIELDS as WHOLE_IN_RECIPES

NAMES = {own for _, _, own in ENTRY_PARAMETERS}
KNOWN = {*AXES, *NAMES, "learning_rate"}


# --- read as written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "text", "domain"),
    [
        ("optimizer", "sgd,ranger", Categorical(("sgd", "ranger"))),
        ("optimizer", " sgd , sgd ", Categorical(("sgd",))),
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
def test_a_domain_is_read_as_a_person_means_it(axis: str, text: str, domain: Distribution) -> None:
    assert parse_distribution(axis, text) == domain


@pytest.mark.parametrize(
    ("axis", "text", "message"),
    [
        # unknown names, the nearest offered
        ("strategy", "clp", r"unknown strategy 'clp': did you mean clip\?"),
        ("optimizer", "adan", r"unknown optimizer 'adan': did you mean adam"),
        ("loss", "label_smoothin", r"unknown loss 'label_smoothin': did you mean label_smoothing"),
        ("embedding_loss", "tripplet", r"unknown embedding_loss 'tripplet': did you mean triplet\? Known: none, con"),
        ("head", "mpl", r"unknown head 'mpl': did you mean mlp\? Known: linear, mlp, cosine"),
        ("colour", "gray", r"unknown colour 'gray': did you mean grey"),
        ("batch_norm", "froze", r"unknown batch_norm 'froze': did you mean frozen"),
        # how values are written
        ("learning_rate", "1e-2..1e-4", r"learning_rate=1e-2..1e-4 is no range: give two numbers, the lower first"),
        ("learning_rate", "1e-4..1e-3..1e-2", r"is no range: .* as in 1e-4..1e-2"),
        ("learning_rate", "1e-4..nan", r"is no range"),
        ("clip_norm", "none..1", r"clip_norm=none..1 is no range"),
        ("optimizer", "sgd..adam", r"optimizer=sgd..adam is no range"),
        ("learning_rate", "fast", r"learning_rate=fast: a number was expected$"),
        ("clip_norm", "off", r"clip_norm=off: a number was expected, or none"),
        ("images_per_class", "all", r"images_per_class=all: a number was expected, or none"),
        ("learning_rate", "1e-4..", r"learning_rate= needs a value"),
        ("batch_size", "16,,32", r"batch_size= needs a value"),
        # whole numbers
        ("batch_size", "16.5", r"batch_size=16.5: a whole number is wanted"),
        ("batch_size", "16..32.5", r"batch_size=32.5: a whole number is wanted"),
        ("batch_size", "none", r"batch_size=None: a whole number is wanted"),
        ("images_per_class", "2.5", r"images_per_class=2.5: a whole number is wanted"),
        ("freeze_epochs", "1.5", r"freeze_epochs=1.5: a whole number is wanted"),
        ("rank", "none", r"rank=None: a whole number is wanted"),
        # beyond reason
        ("learning_rate", "0", r"learning_rate=0: it must lie between 1e-09 and 100"),
        ("learning_rate", "nan", r"learning_rate=nan: it must lie between"),
        ("learning_rate", "inf", r"learning_rate=inf: it must lie between"),
        ("learning_rate", "none", r"learning_rate=None: it must lie between"),
        ("learning_rate", "1e-4..1e3", r"learning_rate=1000.0: it must lie between"),
        ("batch_size", "1", r"batch_size=1: it must lie between 2 and 65536"),
        ("batch_size", "1000000000", r"batch_size=1000000000: it must lie between"),
        ("weight_decay", "-1e-4", r"weight_decay=-0.0001: it must lie between 0 and 10"),
        ("body_rate", "2", r"body_rate=2: it must lie between 1e-06 and 1"),
        ("clip_norm", "none,0", r"clip_norm=0: it must lie between"),
        ("clip_norm", "-1..1", r"clip_norm=-1(\.0)?: it must lie between"),
        ("clip_value", "0", r"clip_value=0: it must lie between"),
        ("images_per_class", "0", r"images_per_class=0: it must lie between 1 and"),
        ("alpha", "nan", r"alpha=nan: it must lie between"),
        ("smoothing", "none", r"smoothing=None: it must lie between 0 and 0.99"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_can(axis: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_distribution(axis, text)


@pytest.mark.parametrize(("axis", "ends"), (LIMITS | PARAMETER_LIMITS).items())
def test_the_ends_of_what_is_within_reason_are_taken_and_nothing_beyond(axis: str, ends: tuple[float, float]) -> None:
    low, high = ends
    for end in ends:
        assert (
            parse_distribution(axis, f"{end:.0f}" if axis in (*INTEGER_AXES, *WHOLE_IN_RECIPES) else repr(end))
            is not None
        )
    for beyond in (low - 1, 2 * high + 1):
        text = f"{beyond:.0f}" if axis in (*INTEGER_AXES, *WHOLE_IN_RECIPES) else repr(beyond)
        with pytest.raises(ValueError, match=f"{axis}=.*: it must lie between"):
            parse_distribution(axis, text)


# --- in step with what there is to choose from -----------------------------------------------------------------------


def test_every_parameter_of_an_entry_has_limits_and_all_limits_a_parameter() -> None:
    # freeze_epochs is limited by the length of the runs, which a domain does not know
    assert {*PARAMETER_LIMITS, "freeze_epochs"} == NAMES


def test_the_names_of_whole_and_of_logarithmic_axes_exist() -> None:
    assert set(INTEGER_AXES) - KNOWN == set()
    assert set(LOG_SCALE_AXES) - KNOWN == set()


def test_a_parameter_is_whole_exactly_where_its_default_is() -> None:
    whole = {
        own
        for kind, name, own in ENTRY_PARAMETERS
        if isinstance(default_parameters(CHOICE_TABLES[kind][name])[own], int)
    }
    assert {name for name in INTEGER_AXES if name in NAMES} == whole
    assert {name for name in INTEGER_AXES if name in AXES} == {name for name in WHOLE_IN_RECIPES if name in AXES}


@pytest.mark.parametrize(("kind", "name", "own"), ENTRY_PARAMETERS)
def test_an_entry_takes_whatever_is_within_reason(kind: str, name: str, own: str) -> None:
    for end in PARAMETER_LIMITS.get(own, (1, 1_000)):
        CHOICE_TABLES[kind][name](**{own: int(end) if own in INTEGER_AXES else end})


@pytest.mark.parametrize(
    ("axis", "domain"),
    [
        *((axis, domain) for axis, domain in AXES.items() if axis not in CHOICE_TABLES),
        *((place.rpartition(".")[2], domain) for place, domain in PARAMETER_RANGES.items() if place != "freeze_epochs"),
        *(("learning_rate", domain) for domain in LEARNING_RATE_RANGES.values()),
    ],
    ids=str,
)
def test_the_usual_domains_lie_within_reason_and_are_such_as_a_person_could_write(
    axis: str, domain: Distribution
) -> None:
    low, high = (LIMITS | PARAMETER_LIMITS)[axis]
    for value in domain_values(domain):
        assert value is None or low <= value <= high  # type: ignore[operator]
    written = str(domain).removesuffix(" log").replace(" ", "")
    assert parse_distribution(axis, written) == domain


# --- values ----------------------------------------------------------------------------------------------------------


def test_options_and_ranges_read_as_they_are_written() -> None:
    assert str(Categorical((None, 0.5, "sgd"))) == "none, 0.5, sgd"
    assert str(Range(1e-4, 1e-2, log=True)) == "0.0001..0.01 log"
    assert str(Range(1, 3)) == "1..3"


@pytest.mark.parametrize(
    ("domain", "wish", "answer"),
    [
        (Categorical((16, 32)), 32, 32),
        (Categorical((16, 32)), 64, 16),
        (Categorical((None, 1.0)), None, None),
        (Range(1, 4), 9, 4),
        (Range(0.25, 0.75), 0.1, 0.25),
        (Range(1, 4), None, 2),
        (Range(0.2, 0.4), None, pytest.approx(0.3)),
        (Range(1e-4, 1e-2, log=True), None, pytest.approx(1e-3)),
    ],
    ids=str,
)
def test_a_wish_is_moved_into_a_domain(domain: Distribution, wish: float | None, answer: object) -> None:
    assert domain.nearest(wish) == answer
