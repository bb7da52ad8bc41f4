"""A sweep's folder in an object store: the same objects, one driver at a time, features computed once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sweeps.engine.storage import json_objects, lease
from sweeps.engine.storage.lease import Lease, LeaseHeldError
from sweeps.engine.storage.remote_features import RemoteCache
from sweeps.engine.storage.store import Store, Trial, list_sweeps
from xfer.features.feature_cache import FeatureCache, Rows
from xfer.records import Record
from xfer.storage import local_cache, object_store
from xfer.storage.object_store import as_path

ROWS: Rows = np.arange(8, dtype=np.float32).reshape(4, 2)


@pytest.fixture
def far(bucket: str) -> Path:
    return as_path(f"{bucket}/runs")


def filled(store: Store, record: Record) -> Store:
    """A store with a plan, two trials, one of them ended, and a decision."""
    store.put_plan({"name": store.name, "trials": 2})
    for name in ("0001", "0000"):
        store.add_trial(Trial(name, "search", {"a": 1}, {"b": [2]}))
    for epoch in record.epochs:
        store.add_epoch("0001", epoch)
    store.add_record(replace(record, trial="0001"))
    store.decide("finals", {"finalists": ["0001"]})
    store.decide("finals", {"finalists": ["0000"]})
    return store


def test_a_store_in_a_bucket_says_what_one_in_a_folder_says(far: Path, tmp_path: Path, record: Record) -> None:
    here, there = (filled(Store(folder / "sweep"), record) for folder in (tmp_path, far))
    assert there.name == here.name == "sweep"
    assert there.plan() == here.plan()
    assert there.trials() == here.trials()
    assert [trial.name for trial in there.trials()] == ["0000", "0001"]
    assert there.epochs("0001") == here.epochs("0001") == record.epochs
    assert there.records() == here.records()
    assert there.decisions("finals") == here.decisions("finals")
    assert [each.name for each in list_sweeps(far)] == ["sweep"]
    assert there.near == local_cache.cache_dir() / "s3" / str(there.folder).removeprefix("s3://")


def test_an_object_in_a_bucket_never_changes_and_a_damaged_one_is_set_aside(far: Path) -> None:
    path = far / "trials" / "0000" / "record.json"
    assert json_objects.put_if_absent(path, {"value": 0.1})
    assert not json_objects.put_if_absent(path, {"value": 0.2})
    assert json_objects.get(path) == {"value": 0.1}
    object_store.write_bytes(path, object_store.read_bytes(path).replace(b"0.1", b"0.3"))
    assert json_objects.get(path) is None
    assert json_objects.get(path) is None
    assert [one.suffix for one in path.parent.iterdir()] == [".damaged"]
    assert json_objects.put_if_absent(path, {"value": 0.2})


def test_one_driver_at_a_time_and_the_next_one_takes_over_what_expired(
    far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    with (
        Lease(far / "sweep"),
        pytest.raises(LeaseHeldError, match="another driver is at work on sweep"),
        Lease(far / "sweep"),
    ):
        pass
    assert lease.lease_holder(far / "sweep") is None
    said = {"holder": "a lost head", "host": "elsewhere", "pid": 1}
    json_objects.replace(far / "sweep" / "lease.json", {**said, "expires": time.time() + 60})
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"), Lease(far / "sweep"):
        pass
    json_objects.replace(far / "sweep" / "lease.json", {**said, "expires": time.time() - 1})
    with Lease(far / "sweep"):
        assert (lease.lease_holder(far / "sweep") or {})["host"] != "elsewhere"


def test_of_two_who_take_an_expired_lease_the_slower_one_has_it(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = far / "sweep" / "lease.json"
    other = {"holder": "other", "host": "elsewhere", "pid": 1}
    json_objects.replace(path, {**other, "expires": time.time() - 1})
    later = {**other, "expires": time.time() + 60}
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: json_objects.replace(path, later))
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"), Lease(far / "sweep"):
        pass


def machine(far: Path, root: Path) -> FeatureCache:
    """What a machine with a disk of its own keeps features in."""
    return FeatureCache(root / "features", RemoteCache(far / "features"))


def test_features_are_computed_on_one_machine_and_brought_to_the_others(far: Path, tmp_path: Path) -> None:
    calls: list[str] = []

    def compute(who: str) -> Iterator[Rows]:
        calls.append(who)
        yield ROWS

    for who in ("a", "b", "a"):
        rows = machine(far, tmp_path / who).get_or_compute({"what": 1}, 4, lambda who=who: compute(who))
        assert np.array_equal(rows, ROWS)
    assert calls == ["a"]


def test_damaged_features_are_computed_where_they_are_wanted(far: Path, tmp_path: Path) -> None:
    machine(far, tmp_path / "a").get_or_compute({"what": 1}, 4, lambda: iter([ROWS]))
    [file] = (far / "features").glob("*/features.npy")
    object_store.write_bytes(file, object_store.read_bytes(file)[:-1] + b"!")
    assert np.array_equal(machine(far, tmp_path / "b").get_or_compute({"what": 1}, 4, lambda: iter([ROWS])), ROWS)


def test_a_machine_waits_for_another_that_is_at_it(far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweeps.engine.storage import remote_features

    name = "ab" * 16
    at_it = far / "features" / ".turns" / name / "lease.json"
    json_objects.replace(at_it, {"holder": "b", "host": "elsewhere", "pid": 1, "expires": time.time() + 60})
    waited: list[float] = []

    def look_again(seconds: float) -> None:
        waited.append(seconds)  # the other one is done meanwhile
        there = far / "features" / name
        object_store.write_bytes(there / "features.npy", b"rows")
        object_store.write_bytes(there / "features.json", b"{}")

    monkeypatch.setattr(remote_features.time, "sleep", look_again)
    with RemoteCache(far / "features").exclusive_compute(tmp_path / name):
        assert (tmp_path / name / "features.npy").read_bytes() == b"rows"
    assert waited == [remote_features.POLL_SECONDS]


def test_a_driver_waits_for_the_lease_of_a_lost_head_and_not_for_one_that_is_alive(
    far: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, said = far / "sweep" / "lease.json", []
    held = {"holder": "other", "host": "elsewhere", "pid": 1}
    json_objects.replace(path, {**held, "expires": time.time() + 60})
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: json_objects.replace(path, {**held, "expires": 0.0}))
    with Lease(far / "sweep", on_wait=said.append):
        pass
    assert said == ["waiting for a sign of life of the driver on elsewhere, for a minute at most"]
    json_objects.replace(path, {**held, "expires": time.time() + 60})
    renewed = {**held, "expires": time.time() + 70}
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: json_objects.replace(path, renewed))
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"), Lease(far / "sweep", on_wait=said.append):
        pass


def test_a_driver_is_told_that_another_has_its_lease_and_a_hiccup_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, path = threading.Event(), tmp_path / "sweep" / "lease.json"
    with Lease(tmp_path / "sweep", renew_seconds=0.01, on_lost=told.set) as mine:
        read, hiccups = json_objects.read, iter([PermissionError("expired")] * 3)
        monkeypatch.setattr(json_objects, "read", lambda path: read(path) if next(hiccups, None) is None else denied())
        time.sleep(0.1)
        assert mine._renewing.is_alive()
        assert not told.is_set()
        other = {"holder": "other", "host": "elsewhere", "pid": 1, "expires": time.time() + 60}
        for _ in range(100):  # not once: it may just have been found to be ours, and be about to be renewed
            json_objects.replace(path, other)
            if told.wait(0.1):
                break
        assert told.is_set()
    assert json_objects.read(path) == other


def denied() -> None:
    raise PermissionError("expired")


def test_a_store_that_is_away_is_no_damaged_object(far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = far / "plan.json"
    json_objects.replace(path, {"a": 1})
    monkeypatch.setattr(object_store, "read_bytes", lambda path: (_ for _ in ()).throw(ValueError("400, invalid")))
    with pytest.raises(ValueError, match="400, invalid"):
        json_objects.get(path)
    assert object_store.list_names(far) == ["plan.json"]


def test_when_objects_were_written_is_asked_for_once_for_a_whole_trial(
    far: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(Store(far / "sweep"), record)
    folder, asked = store.trial_folder("0001"), []
    ask = object_store._ask
    monkeypatch.setattr(object_store, "_ask", lambda *given, **more: (asked.append(given[1]), ask(*given, **more))[1])
    at = [object_store.modified_ms(path) for path in (folder / "record.json", *objects_of(folder))]
    assert all(abs(each - time.time() * 1000) < 600_000 for each in at if each)
    assert len(at) > 2
    assert None not in at
    assert asked == ["find"]
    assert object_store.modified_ms(folder / "test.json") is None


def objects_of(folder: Path) -> list[Path]:
    return [folder / "config.json", folder / "epochs" / "0001.json"]
