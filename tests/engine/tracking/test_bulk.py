"""Many trials at once stand in MLflow's database as its client would have written them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.tracking import Mirror, bulk, default_tracking_uri
from tests.engine.tracking.mirror_helpers import RECIPE, end_trial, tables


@pytest.fixture
def many(store: Store) -> Store:
    """Fourteen trials that ended in every way there is."""
    for number in range(3, 14):
        end_trial(
            store,
            f"{number:04d}",
            number % 4,
            "failed" if number % 4 == 0 else "finished" if number % 4 == 3 else "pruned",
        )
    return store


def test_in_bulk_mlflow_has_row_for_row_what_its_client_would_have_written(
    many: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uris = [f"sqlite:///{tmp_path / name}.db" for name in ("bulk", "client")]
    assert Mirror(many, uris[0]).sync()
    monkeypatch.setattr(bulk, "MIN_TRIALS", 1_000)
    assert Mirror(many, uris[1]).sync()
    found, wanted = map(tables, uris)
    assert [one for table in found for one in zip(found[table], wanted[table], strict=True) if one[0] != one[1]] == []
    assert len(found["runs"]) == 14


def test_what_came_in_bulk_is_known_to_the_next_mirror_and_to_this_one(many: Store) -> None:
    uri = default_tracking_uri(many.folder.parent)
    mirror = Mirror(many, uri)
    assert mirror.sync()
    before = tables(uri)
    assert mirror.sync()
    assert Mirror(many, uri).sync()
    assert tables(uri) == before


def test_a_bulk_that_fails_leaves_nothing_behind_and_the_client_goes_on(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, row = default_tracking_uri(many.folder.parent), bulk._row
    monkeypatch.setattr(bulk, "_row", lambda metric, run: {**row(metric, run), "value": None})
    mirror = Mirror(many, uri)
    assert not mirror.sync()
    assert tables(uri)["runs"] == []
    assert mirror.sync()
    assert len(tables(uri)["runs"]) == 14


def test_what_mlflow_might_refuse_is_left_to_its_client(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(
        bulk, "insert_trials", lambda client, uri, sweep, trials: sent.extend(each.record.trial for each in trials)
    )
    many.add_trial(Trial("0014", "search", {}, {**RECIPE, "backbone": "b" * 600}))
    many.add_record(replace(many.record("0002"), trial="0014"))  # type: ignore[type-var]
    Mirror(many, default_tracking_uri(many.folder.parent)).sync()
    assert sent == [f"{number:04d}" for number in range(14)]
