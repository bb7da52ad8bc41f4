"""A sweep in an object store: the same objects as in a local folder, one driver at a time, features computed once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.engine.storage import json_objects, lease, remote_features
from sweeps.engine.storage.lease import Lease, LeaseHeldError
from sweeps.engine.storage.remote_features import RemoteCache
from sweeps.engine.storage.store import Store, Trial, list_sweeps
from xfer.feature_extraction.feature_cache import FeatureCache, Rows
from xfer.records import Record
from xfer.storage import local_cache, object_store
from xfer.storage.object_store import as_path

ROWS: Rows = np.arange(8, dtype=np.float32).reshape(4, 2)


@pytest.fixture
def remote(bucket: str) -> Path:
    return as_path(f"{bucket}/runs")


def fill(store: Store, record: Record) -> Store:
    """Write a plan, two trials, one of them ended, and two decisions to a store."""
    store.put_plan({"name": store.name, "trials": 2})
    for name in ("0001", "0000"):
        store.add_trial(Trial(name, "search", {"a": 1}, {"b": [2]}))
    for epoch in record.epochs:
        store.add_epoch("0001", epoch)
    store.add_record(replace(record, trial="0001"))
    store.decide("finals", {"finalists": ["0001"]})
    store.decide("finals", {"finalists": ["0000"]})
    return store


def test_a_store_in_a_bucket_returns_the_same_as_one_in_a_folder(remote: Path, tmp_path: Path, record: Record) -> None:
    local, in_bucket = (fill(Store(folder / "sweep"), record) for folder in (tmp_path, remote))
    assert in_bucket.name == local.name == "sweep"
    assert in_bucket.plan() == local.plan()
    assert in_bucket.trials() == local.trials()
    assert [trial.name for trial in in_bucket.trials()] == ["0000", "0001"]
    assert in_bucket.epochs("0001") == local.epochs("0001") == record.epochs
    assert in_bucket.records() == local.records()
    assert in_bucket.decisions("finals") == local.decisions("finals")
    assert [store.name for store in list_sweeps(remote)] == ["sweep"]
    assert in_bucket.local_folder == local_cache.cache_dir() / "s3" / str(in_bucket.folder).removeprefix("s3://")


def test_an_object_in_a_bucket_never_changes_and_a_damaged_one_is_renamed(remote: Path) -> None:
    path = remote / "trials" / "0000" / "record.json"
    assert json_objects.put_if_absent(path, {"value": 0.1})
    assert not json_objects.put_if_absent(path, {"value": 0.2})
    assert json_objects.get(path) == {"value": 0.1}
    object_store.write_bytes(path, object_store.read_bytes(path).replace(b"0.1", b"0.3"))
    assert json_objects.get(path) is None
    assert json_objects.get(path) is None
    assert [entry.suffix for entry in path.parent.iterdir()] == [".damaged"]
    assert json_objects.put_if_absent(path, {"value": 0.2})


def test_one_driver_at_a_time_and_the_next_takes_over_an_expired_lease(
    remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    with (
        Lease(remote / "sweep"),
        pytest.raises(LeaseHeldError, match="another driver is at work on sweep"),
        Lease(remote / "sweep"),
    ):
        pass
    assert lease.lease_holder(remote / "sweep") is None
    other = {"holder": "a lost head", "host": "elsewhere", "pid": 1}
    json_objects.replace(remote / "sweep" / "lease.json", {**other, "expires": time.time() + 60})
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"), Lease(remote / "sweep"):
        pass
    json_objects.replace(remote / "sweep" / "lease.json", {**other, "expires": time.time() - 1})
    with Lease(remote / "sweep"):
        assert (lease.lease_holder(remote / "sweep") or {})["host"] != "elsewhere"


def test_of_two_drivers_that_take_an_expired_lease_the_later_one_holds_it(
    remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = remote / "sweep" / "lease.json"
    other = {"holder": "other", "host": "elsewhere", "pid": 1}
    json_objects.replace(path, {**other, "expires": time.time() - 1})
    later = {**other, "expires": time.time() + 60}
    monkeypatch.setattr(time, "sleep", lambda seconds: json_objects.replace(path, later))
    with pytest.raises(LeaseHeldError, match="process 1 on elsewhere"), Lease(remote / "sweep"):
        pass


def machine(remote: Path, root: Path) -> FeatureCache:
    """The feature cache of a machine with its own disk."""
    return FeatureCache(root / "features", RemoteCache(remote / "features"))


def test_features_are_computed_on_one_machine_and_downloaded_by_the_others(remote: Path, tmp_path: Path) -> None:
    computed: list[str] = []

    def compute(name: str) -> Iterator[Rows]:
        computed.append(name)
        yield ROWS

    for name in ("a", "b", "a"):
        rows = machine(remote, tmp_path / name).get_or_compute({"what": 1}, 4, lambda name=name: compute(name))
        assert np.array_equal(rows, ROWS)
    assert computed == ["a"]


def test_damaged_features_are_computed_again(remote: Path, tmp_path: Path) -> None:
    machine(remote, tmp_path / "a").get_or_compute({"what": 1}, 4, lambda: iter([ROWS]))
    [file] = (remote / "features").glob("*/features.npy")
    object_store.write_bytes(file, object_store.read_bytes(file)[:-1] + b"!")
    assert np.array_equal(machine(remote, tmp_path / "b").get_or_compute({"what": 1}, 4, lambda: iter([ROWS])), ROWS)


def test_a_machine_waits_while_another_computes(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ab" * 16
    other_lease = remote / "features" / ".turns" / name / "lease.json"
    json_objects.replace(other_lease, {"holder": "b", "host": "elsewhere", "pid": 1, "expires": time.time() + 60})
    waited: list[float] = []

    def finish(seconds: float) -> None:
        waited.append(seconds)
        array = remote / "features" / name
        object_store.write_bytes(array / "features.npy", b"rows")
        object_store.write_bytes(array / "features.json", b"{}")

    monkeypatch.setattr(time, "sleep", finish)
    with RemoteCache(remote / "features").exclusive_compute(tmp_path / name):
        assert (tmp_path / name / "features.npy").read_bytes() == b"rows"
    assert waited == [remote_features.POLL_SECONDS]


def test_a_driver_waits_for_the_lease_of_a_lost_host_but_not_of_a_running_one(
    remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, messages = remote / "sweep" / "lease.json", []
    held = {"holder": "other", "host": "elsewhere", "pid": 1}
    json_objects.replace(path, {**held, "expires": time.time() + 60})
    monkeypatch.setattr(time, "sleep", lambda seconds: json_objects.replace(path, {**held, "expires": 0.0}))
    with Lease(remote / "sweep", on_wait=messages.append):
        pass
    assert messages == ["waiting up to a minute for the driver on elsewhere to show that it is alive"]
    json_objects.replace(path, {**held, "expires": time.time() + 60})
    renewed = {**held, "expires": time.time() + 70}
    monkeypatch.setattr(time, "sleep", lambda seconds: json_objects.replace(path, renewed))
    with (
        pytest.raises(LeaseHeldError, match="process 1 on elsewhere"),
        Lease(remote / "sweep", on_wait=messages.append),
    ):
        pass


def test_a_driver_learns_that_it_lost_its_lease_and_ignores_failed_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, path = threading.Event(), tmp_path / "sweep" / "lease.json"
    read, failures = json_objects.read, [PermissionError("expired")] * 3

    def unreliable(path: Path) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return read(path)

    with Lease(tmp_path / "sweep", renew_seconds=0.01, on_lost=lost.set):
        monkeypatch.setattr(json_objects, "read", unreliable)
        time.sleep(0.1)
        assert failures == []
        assert "lease" in [thread.name for thread in threading.enumerate()]
        assert not lost.is_set()
        other = {"holder": "other", "host": "elsewhere", "pid": 1, "expires": time.time() + 60}
        for _ in range(100):  # a single write may be overwritten by a renewal that has already checked the holder
            json_objects.replace(path, other)
            if lost.wait(0.1):
                break
        assert lost.is_set()
    assert json_objects.read(path) == other


def test_an_object_that_cannot_be_fetched_is_not_damaged(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = remote / "plan.json"
    json_objects.replace(path, {"a": 1})
    monkeypatch.setattr(object_store, "read_bytes", lambda path: (_ for _ in ()).throw(ValueError("400, invalid")))
    with pytest.raises(ValueError, match="400, invalid"):
        json_objects.get(path)
    assert object_store.list_names(remote) == ["plan.json"]


def test_modification_times_of_a_whole_trial_take_one_request(
    remote: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(Store(remote / "sweep"), record)
    folder, requests = store.trial_folder("0001"), []
    find = folder.fs.find
    monkeypatch.setattr(folder.fs, "find", lambda *args, **options: (requests.append(args), find(*args, **options))[1])
    monkeypatch.setattr(folder.fs, "info", None)  # any other request for a time fails
    times = [object_store.modified_ms(folder / name) for name in ("record.json", "config.json", "epochs/0001.json")]
    assert all(abs(time_ms - time.time() * 1000) < 600_000 for time_ms in times)
    assert len(requests) == 1
    assert object_store.modified_ms(folder / "test.json") is None
