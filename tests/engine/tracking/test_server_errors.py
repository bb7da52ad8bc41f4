"""When the server fails, nothing is lost or duplicated, and the sweep is not delayed."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine import tracking
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.tracking import Mirror, client, default_tracking_uri
from tests.engine.tracking.mirror_helpers import (
    PLAN,
    RECIPE,
    begin_trial,
    end_trial,
    epoch,
    free_port,
    mlflow_contents,
    server,
    uri_of,
    wait_until,
)


def test_an_unreachable_server_is_logged_once_and_raises_nothing(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = Mirror(store, f"http://me:hunter2@127.0.0.1:{free_port()}")
    assert not mirror.sync()
    assert not mirror.sync()
    assert [record.levelname for record in caplog.records if record.name == "sweeps.engine.tracking.mirror"] == [
        "WARNING"
    ]
    assert "hunter2" not in caplog.text
    assert not mirror.complete


@pytest.mark.slow
@pytest.mark.parametrize("method", ["create_run", "log_batch", "set_terminated", "search_runs", "set_tag"])
@pytest.mark.parametrize("carried_out", [True, False], ids=["reply lost", "request lost"])
def test_an_error_in_any_request_is_repaired_by_the_next_syncs(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str, carried_out: bool
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    store.put_plan({**PLAN, "trials": 4})  # so that the parent's tags change too
    begin_trial(store, "0003", epochs=2)
    uri = uri_of(store)
    original = getattr(MlflowClient, method)
    calls = 0

    def fails_every_second_time(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2 and not carried_out:
            raise MlflowException("500 from the server")
        result = original(self, *args, **kwargs)
        if calls % 2:
            raise MlflowException("the reply was lost")
        return result

    monkeypatch.setattr(MlflowClient, method, fails_every_second_time)
    mirror = Mirror(store, uri)
    for _ in range(20):
        mirror.sync()
    monkeypatch.undo()
    assert mirror.sync()
    assert mlflow_contents(store)[""].values["trials_finished"] == [(0, 0.0), (1, 1.0), (2, 1.0), (3, 1.0)]
    assert {name: (run.status, run.values.get("val_accuracy")) for name, run in mlflow_contents(store).items()} == {
        "": ("KILLED", None),
        "0000": ("FINISHED", [(1, 0.7), (2, 0.8), (3, 0.9)]),
        "0001": ("FINISHED", [(1, 0.7), (2, 0.8)]),
        "0002": ("FAILED", [(1, 0.7)]),
        "0003": ("KILLED", [(1, 0.7), (2, 0.8)]),
    }


def test_a_duplicate_run_that_was_created_late_is_deleted(store: Store) -> None:
    mirror = Mirror(store, uri_of(store))
    mirror.sync()
    client = tracking.connect_mlflow(uri_of(store))
    original = mlflow_contents(store)["0001"]
    late = client.create_run(
        original.info.experiment_id, tags={k: original.tags[k] for k in ("xfer.sweep", "xfer.trial")}
    )
    assert Mirror(store, uri_of(store)).sync()
    assert client.get_run(late.info.run_id).info.lifecycle_stage == "deleted"
    assert client.get_run(original.id).info.lifecycle_stage == "active"
    assert Mirror(store, uri_of(store)).sync()


def test_a_trial_that_mlflow_rejects_does_not_stop_the_others(store: Store) -> None:
    store.add_trial(Trial("0000-s9", "search", {}, {**RECIPE, "a=b?*": "an invalid key for MLflow"}))
    mirror = Mirror(store, uri_of(store))
    assert not mirror.sync()
    assert mlflow_contents(store)["0002"].status == "FAILED"


def test_a_damaged_epoch_that_is_trained_again_is_logged(store: Store) -> None:
    begin_trial(store, "0003", epochs=2)
    damaged = store.trial_folder("0003") / "epochs" / "0001.json"
    damaged.write_text('{"epoch": 1, "tra')
    mirror = Mirror(store, uri_of(store))
    assert mirror.sync()
    store.add_epoch("0003", epoch(1))
    assert mirror.sync()
    assert sorted(mlflow_contents(store)["0003"].values["val_accuracy"]) == [(1, 0.7), (2, 0.8)]


def test_a_hanging_server_does_not_delay_the_sweep(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(client.MLFLOW_SETTINGS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        mirror = Mirror(store, f"http://127.0.0.1:{silent.getsockname()[1]}", period_seconds=0.05).start()
        time.sleep(0.3)
        before = time.monotonic()
        assert not mirror.close()
        assert time.monotonic() - before < 4
        patient = Mirror(store, f"http://127.0.0.1:{silent.getsockname()[1]}").start()
        before = time.monotonic()
        assert not patient.close(patience_seconds=0.2)
        assert time.monotonic() - before < 1


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_gets_everything_once(store: Store, tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    mirror = Mirror(store, uri, period_seconds=0.2).start()
    with server(tmp_path / "server", port):
        wait_until(
            lambda: "0002" in mlflow_contents(store, uri) and mlflow_contents(store, uri)["0002"].status == "FAILED", 60
        )
        begin_trial(store, "0003", epochs=1)
        wait_until(lambda: "0003" in mlflow_contents(store, uri), 60)
    end_trial(store, "0003", 3, "finished")
    time.sleep(1)
    assert not mirror.close()

    with server(tmp_path / "server", port):
        wait_until(Mirror(store, uri).sync, 60)
        runs = mlflow_contents(store, uri)
    assert {name: (run.status, run.values.get("val_accuracy")) for name, run in runs.items()} == {
        "": ("KILLED", None),
        "0000": ("FINISHED", [(1, 0.7), (2, 0.8), (3, 0.9)]),
        "0001": ("FINISHED", [(1, 0.7), (2, 0.8)]),
        "0002": ("FAILED", [(1, 0.7)]),
        "0003": ("FINISHED", [(1, 0.7), (2, 0.8), (3, 0.9)]),
    }


@pytest.mark.slow
def test_processes_that_create_the_database_at_once_all_get_it(tmp_path: Path) -> None:
    code = "import sys; from sweeps.engine.tracking import connect_mlflow as connect; "
    code += "connect(sys.argv[1]).create_experiment(sys.argv[2])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, default_tracking_uri(tmp_path), name], stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", ""]
    found = tracking.connect_mlflow(default_tracking_uri(tmp_path)).search_experiments()
    assert sorted(experiment.name for experiment in found) == ["Default", "a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
