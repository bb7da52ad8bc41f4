"""Zero-effort rows: what can be classified without any training of a network, measured before the search.

Nearest neighbours and a logistic probe on frozen features take seconds, so a sweep prints them first: everything it
trains afterwards has to beat them. An image-text network, if one is given, adds zero-shot rows. The rows are not
trials, so they are never ranked, stopped or selected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sweeps.engine.console.provenance import utc_now
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.planning.screening import pretrained_backbones
from sweeps.engine.presearch.frozen_body import feature_cache, frozen_body
from sweeps.engine.storage.store import Store
from sweeps.reporting.zero_effort import describe_rows
from xfer.advice.zero_effort import EvaluatedPart, data_curve, frozen_feature_rows
from xfer.advice.zero_shot import network_label, zero_shot_rows
from xfer.data.split import stratified_sample
from xfer.seeding import derive_seed
from xfer.storage import object_store

log = logging.getLogger(__name__)

MAX_ZERO_SHOT_IMAGES = 500
"""Maximum number of images of a part for zero-shot rows. Image-text networks are large; a larger part is sampled."""

ZERO_SHOT_KEY = "zero_shot"
"""Key of a stored decision that holds zero-shot rows: the network's name."""


def measure_before_training(prepared: Prepared, store: Store, on_line: Callable[[str], None]) -> None:
    """Measure the rows on the validation part, store them and print them.

    Rows that are stored are not measured again. Does nothing if the test part has been opened: a sweep of an earlier
    version has no rows.

    Args:
        prepared: the plan with its data and weights.
        store: the sweep's, whose plan has been claimed.
        on_line: prints a line.
    """
    if store.decisions("openings"):
        return
    names, network = pretrained_backbones(prepared), network_label(prepared.plan.zero_shot)
    stored = store.decisions("zero_effort")
    due: list[Callable[[], dict[str, Any]]] = []
    if names and all(ZERO_SHOT_KEY in decision for decision in stored):
        due.append(lambda: _measure_frozen(prepared, store, names, "val"))
    if network and all(decision.get(ZERO_SHOT_KEY) != network for decision in stored):
        due.append(lambda: _measure_zero_shot(prepared, "val"))
    for measure in due:
        decision = measure()
        store.decide("zero_effort", decision)
        for line in describe_rows(decision):
            on_line(line)


def measure_on_test(prepared: Prepared, store: Store) -> None:
    """Measure the rows of the finalists' backbones and of zero-shot on the test part, if it is open, and store them.

    Does nothing if they are stored, or if there are no rows on the validation part.

    Args:
        prepared: the plan with its data and weights.
        store: the sweep's.
    """
    openings, stored = store.decisions("openings"), store.decisions("zero_effort")
    if not openings:
        return
    frozen = [decision for decision in stored if ZERO_SHOT_KEY not in decision]
    if [decision["part"] for decision in frozen] == ["val"]:
        finalists = openings[-1]["finalists"]
        competing = {trial.recipe["backbone"] for trial in store.trials() if trial.name in finalists}
        names = list(dict.fromkeys(row["backbone"] for row in frozen[0]["rows"] if row["backbone"] in competing))
        if names:
            store.decide("zero_effort", _measure_frozen(prepared, store, names, "test"))
    network = network_label(prepared.plan.zero_shot)
    zero_shot = [decision for decision in stored if network and decision.get(ZERO_SHOT_KEY) == network]
    if [decision["part"] for decision in zero_shot] == ["val"] and zero_shot[0]["rows"]:
        store.decide("zero_effort", _measure_zero_shot(prepared, "test"))


def measure_data_curve(prepared: Prepared, store: Store) -> None:
    """Measure what more training images would add on the first backbone, and store it.

    At the end of a sweep, when its features are cached and no trial waits. Does nothing if it is stored, if there are
    no rows on frozen features, or if the network cannot be measured.

    Args:
        prepared: the plan with its data and weights.
        store: the sweep's.
    """
    measured = [row["backbone"] for decision in store.decisions("zero_effort") for row in decision["rows"]]
    names = [name for name in pretrained_backbones(prepared) if name in measured][:1]
    if not names or store.decisions("data_curve"):
        return
    try:
        split, features = frozen_body(prepared, names[0], feature_cache(store))
        points = data_curve(features, split, prepared.plan.seed)
    except object_store.StorageUnavailableError:
        raise
    except Exception as error:  # any error in a network's code; a report can do without the curve
        log.warning("more photos: not measured (%s: %s)", type(error).__name__, error)
        return
    store.decide("data_curve", {"at": utc_now(), "backbone": names[0], "points": points})


def _measure_frozen(prepared: Prepared, store: Store, names: list[str], part: EvaluatedPart) -> dict[str, Any]:
    def rows_of(name: str) -> list[dict[str, Any]]:
        split, features = frozen_body(prepared, name, feature_cache(store))
        return [*frozen_feature_rows(features, split, part, prepared.plan.seed)]

    return _decision(part, names, rows_of)


def _measure_zero_shot(prepared: Prepared, part: EvaluatedPart) -> dict[str, Any]:
    plan, labels = prepared.plan, prepared.pack.labels
    seed = derive_seed(plan.seed, "zero-shot")
    sample = stratified_sample(labels, prepared.split.of(part), MAX_ZERO_SHOT_IMAGES, seed)
    network = network_label(plan.zero_shot)
    rows = _decision(part, [network], lambda name: [*zero_shot_rows(plan.zero_shot, prepared.pack, sample)])
    return {**rows, ZERO_SHOT_KEY: network}


def _decision(part: EvaluatedPart, names: list[str], rows_of: Callable[[str], list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the rows of networks as plain data, with the reason for each network that has none."""
    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for name in names:
        try:
            rows += [{"backbone": name, **row} for row in rows_of(name)]
        except object_store.StorageUnavailableError:
            raise
        except Exception as error:  # any error in a network's code; a sweep can run without these rows
            failures[name] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return {"at": utc_now(), "part": part, "rows": rows, "why_none": failures}
