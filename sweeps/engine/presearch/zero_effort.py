"""Zero-effort rows: what frozen features classify without any training of the network, measured before the search.

Nearest neighbours and a logistic probe take seconds, so a sweep prints them first: everything it trains afterwards has
to beat them. They are not trials, so they are never ranked, stopped or selected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from sweeps.engine.console.provenance import utc_now
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.planning.screening import pretrained_backbones
from sweeps.engine.presearch.frozen_body import feature_cache, frozen_body
from sweeps.engine.storage.store import Store
from sweeps.reporting.zero_effort import KNN, LOGISTIC_PROBE, describe_rows
from xfer.data.split import Indices, stratified_sample
from xfer.features.feature_cache import Rows
from xfer.features.frozen_features import FrozenFeatures
from xfer.measure.logistic_probe import choose_penalty, logistic_probe_classes
from xfer.measure.nearest_neighbours import nearest_neighbour_classes
from xfer.seeding import derive_seed
from xfer.storage import object_store

NEIGHBOURS = (5, 20)
"""Numbers of neighbours; capped at the number of training images."""

MAX_IMAGES = 2_000
"""Maximum number of images of each part. A larger part is sampled, which bounds the time. Features of a sample are not
shared with the search, which computes all of them."""

EvaluatedPart = Literal["val", "test"]


def measure_before_training(prepared: Prepared, store: Store, on_line: Callable[[str], None]) -> None:
    """Measure the zero-effort rows of every pretrained backbone on the validation part, store them and print them.

    Does nothing if they are stored, or if a sweep of an earlier version has opened its test part without them.

    Args:
        prepared: the plan with its data and weights.
        store: the sweep's, whose plan has been claimed.
        on_line: prints a line.
    """
    names = pretrained_backbones(prepared)
    if not names or store.decisions("zero_effort") or store.decisions("openings"):
        return
    decision = _measure(prepared, store, names, "val")
    store.decide("zero_effort", decision)
    for line in describe_rows(decision):
        on_line(line)


def measure_on_test(prepared: Prepared, store: Store) -> None:
    """Measure the rows of the finalists' backbones on the test part, if it has been opened, and store them.

    Does nothing if they are stored, or if there are no rows on the validation part.

    Args:
        prepared: the plan with its data and weights.
        store: the sweep's.
    """
    openings, measured = store.decisions("openings"), store.decisions("zero_effort")
    if not openings or [decision["part"] for decision in measured] != ["val"]:
        return
    finalists = openings[-1]["finalists"]
    competing = {trial.recipe["backbone"] for trial in store.trials() if trial.name in finalists}
    names = list(dict.fromkeys(row["backbone"] for row in measured[0]["rows"] if row["backbone"] in competing))
    if names:
        store.decide("zero_effort", _measure(prepared, store, names, "test"))


def _measure(prepared: Prepared, store: Store, names: list[str], part: EvaluatedPart) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for name in names:
        try:
            rows += _rows_of_backbone(prepared, store, name, part)
        except object_store.StorageUnavailableError:
            raise
        except Exception as error:  # any error in a network's code; a sweep can run without these rows
            failures[name] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return {"at": utc_now(), "part": part, "rows": rows, "why_none": failures}


def _rows_of_backbone(prepared: Prepared, store: Store, name: str, part: EvaluatedPart) -> Iterator[dict[str, Any]]:
    split, features = frozen_body(prepared, name, feature_cache(store))
    seed = derive_seed(prepared.plan.seed, "zero effort")
    train, evaluated = (
        stratified_sample(prepared.pack.labels, split.of(of), MAX_IMAGES, seed) for of in ("train", part)
    )
    is_sampled = max(len(split.train_and_val), len(split.of(part))) > MAX_IMAGES
    known, queries = (_embeddings(features, indices, is_sampled) for indices in (train, evaluated))
    labels, truth = prepared.pack.labels[train].astype(np.int64), prepared.pack.labels[evaluated]
    if not (np.isfinite(known).all() and np.isfinite(queries).all()):
        raise ValueError("features must be finite, but some are not: check that the weights fit the network")

    def row(method: str, predicted: Any, **settings: float) -> dict[str, Any]:
        counts = {"correct": int((predicted == truth).sum()), "images": len(truth), "train_images": len(train)}
        return {"backbone": name, "method": method, **settings, **counts}

    for k in sorted({min(k, len(train)) for k in NEIGHBOURS}):
        yield row(KNN, nearest_neighbour_classes(known, labels, queries, k), k=k)
    penalty = choose_penalty(known, labels, seed=seed)
    yield row(LOGISTIC_PROBE, logistic_probe_classes(known, labels, queries, penalty), penalty=penalty)


def _embeddings(features: FrozenFeatures, indices: Indices, is_sampled: bool) -> Rows:
    if is_sampled:
        return np.concatenate(list(features.compute(indices, None)))
    rows: Rows = features.rows(indices).numpy()
    return rows
