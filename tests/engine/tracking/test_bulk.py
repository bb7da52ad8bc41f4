"""Trials inserted in bulk are stored in MLflow's database as its client would have stored them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.tracking import Mirror, bulk, default_tracking_uri, mirror
from tests.engine.tracking.mirror_helpers import RECIPE, end_trial, tables


@pytest.fixture
def many(store: Store) -> Store:
    """A sweep of fourteen trials, with every status a trial can end with."""
    for number in range(3, 14):
        end_trial(
            store,
            f"{number:04d}",
            number % 4,
            "failed" if number % 4 == 0 else "finished" if number % 4 == 3 else "pruned",
        )
    return store


@pytest.mark.slow
def test_a_bulk_insert_writes_row_for_row_what_the_client_writes(
    many: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uris = [f"sqlite:///{tmp_path / name}.db" for name in ("bulk", "client")]
    assert Mirror(many, uris[0]).sync()
    monkeypatch.setattr(mirror, "MIN_TRIALS", 1_000)
    assert Mirror(many, uris[1]).sync()
    inserted, logged = map(tables, uris)
    pairs = [pair for table in inserted for pair in zip(inserted[table], logged[table], strict=True)]
    assert [pair for pair in pairs if pair[0] != pair[1]] == []
    assert len(inserted["runs"]) == 14


def test_trials_inserted_in_bulk_are_known_to_this_mirror_and_to_the_next(many: Store) -> None:
    uri = default_tracking_uri(many.folder.parent)
    first = Mirror(many, uri)
    assert first.sync()
    before = tables(uri)
    assert first.sync()
    assert Mirror(many, uri).sync()
    assert tables(uri) == before


def test_a_bulk_insert_that_fails_changes_nothing_and_the_client_takes_over(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.entities import Metric

    uri = default_tracking_uri(many.folder.parent)
    rejected = [Metric("no_value", None, 0, 0)]  # type: ignore[arg-type]
    monkeypatch.setattr(bulk, "record_metrics", lambda record, timestamp: rejected)
    one = Mirror(many, uri)
    assert not one.sync()
    assert tables(uri)["runs"] == []
    assert one.sync()
    assert len(tables(uri)["runs"]) == 14


def test_a_trial_that_mlflow_might_reject_is_left_to_its_client(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    inserted = []
    monkeypatch.setattr(
        mirror,
        "insert_trials",
        lambda client, uri, sweep, trials: inserted.extend(trial.record.trial for trial in trials),
    )
    many.add_trial(Trial("0014", "search", {}, {**RECIPE, "backbone": "b" * 600}))
    many.add_record(replace(many.record("0002"), trial="0014"))  # type: ignore[type-var]
    Mirror(many, default_tracking_uri(many.folder.parent)).sync()
    assert inserted == [f"{number:04d}" for number in range(14)]
