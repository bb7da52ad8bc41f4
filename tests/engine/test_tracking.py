"""What MLflow shows is what the store says, each thing once, whatever the server does meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sweeps.engine import objects, tracking
from sweeps.engine.store import Store, Trial
from sweeps.engine.tracking import Mirror, bulk, client, default_uri
from xfer.records import Epoch, Evaluation, Phase, Record, Status

PLAN: dict[str, Any] = {
    "experiment": "folder",
    "name": "folder-hymenoptera-3fa2c1",
    "question": "Which way of transferring tells ants from bees best?",
    "data": {
        "source": "folder",
        "folder": "data/hymenoptera",
        "pack": "77aa",
        "classes": ["ants", "bees"],
        "train": 195,
        "val": 49,
        "test": 153,
        "split": "a stratified part of train was held out for validation",
        "notes": ["2 images could not be read"],
    },
    "backbones": [{"name": "mobilenetv2_100", "args": {}, "weights": "9f3c", "file": "w.safetensors"}],
    "image_size": 128,
    "space": {"strategy": "freeze_then_unfreeze, naive", "learning_rate": "1e-4 to 1e-2, log"},
    "trials": 3,
    "epochs": 3,
    "sampler": "tpe",
    "scheduler": "asha",
    "finalists": 1,
    "seeds": 1,
    "seed": 0,
    "provenance": {
        "command": "python -m sweeps.folder --data data/hymenoptera --tracking-uri http://me:hunter2@host",
        "commit": "4b825dc",
        "versions": {"torch": "2.15.0"},
        "machine": {"cpus": 2},
        "created": "2026-03-01T10:00:00+00:00",
    },
}
RECIPE: dict[str, Any] = {
    "data": "77aa",
    "classes": 2,
    "image_size": 128,
    "backbone": "mobilenetv2_100",
    "backbone_args": {},
    "weights": "9f3c",
    "strategy": {"name": "freeze_then_unfreeze", "freeze_epochs": 2},
    "clip_norm": None,
    "optimizer": {"name": "adam"},
    "schedule": {"name": "onecycle"},
    "augmentation": {"name": "flip"},
    "mixing": {"name": "none"},
    "loss": {"name": "cross_entropy"},
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "batch_size": 32,
    "epochs": 3,
    "seed": 0,
    "draw": 0,
}


def epoch(number: int) -> Epoch:
    return Epoch(
        epoch=number,
        train_loss=1 / number,
        train_accuracy=0.5,
        val_loss=0.9 / number,
        val_accuracy=round(0.6 + 0.1 * number, 3),
        learning_rate=1e-3,
        gradient_norm=2.0,
        seconds=3.0,
        images_per_second=65.0,
        cpu_percent=99.0,
        memory_mb=512.0,
    )


def begin(store: Store, name: str, epochs: int = 0, phase: Phase = "search") -> None:
    store.add_trial(Trial(name, phase, {"strategy": "naive"}, RECIPE))
    for number in range(1, epochs + 1):
        store.add_epoch(name, epoch(number))


def end(store: Store, name: str, epochs: int, status: Status, phase: Phase = "search") -> None:
    begin(store, name, epochs, phase)
    store.add_record(
        Record(
            trial=name,
            phase=phase,
            key="k1",
            id="i1",
            recipe=RECIPE,
            status=status,
            epochs=tuple(epoch(number) for number in range(1, epochs + 1)),
            parameters=2_000_000,
            trainable_parameters=2_562,
            seconds=3.0 * epochs,
            error="the loss is NaN at step 7" if status == "failed" else None,
        )
    )


def opened(hits: int) -> Evaluation:
    return Evaluation("test", 0.4, tuple(range(10)), tuple(place < hits for place in range(10)))


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Store:
    """A sweep of three trials, one of each ending, in a storage that has an MLflow database."""
    storage = tmp_path / "my runs"
    storage.mkdir()
    (storage / "mlflow.db").write_bytes(empty_database.read_bytes())  # migrating takes 1.5 s, once is enough
    store = Store(storage / PLAN["name"])
    store.put_plan(PLAN)
    end(store, "0000", 3, "finished")
    end(store, "0001", 2, "pruned")
    end(store, "0002", 1, "failed")
    return store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow")
    tracking.connect(default_uri(folder))
    return folder / "mlflow.db"


def uri_of(store: Store) -> str:
    return default_uri(store.folder.parent)


def shown(store: Store, uri: str | None = None) -> dict[str, Any]:
    """Everything that MLflow has, bin included: by trial, the parent under ''."""
    from mlflow.entities import ViewType

    client = tracking.connect(uri or uri_of(store))
    experiment = client.get_experiment_by_name("folder")
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL) if experiment else []
    result: dict[str, Any] = {}
    for run in runs:
        name = run.data.tags.get("xfer.trial", "")
        assert name not in result, f"{name!r} is there twice"
        history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        result[name] = SimpleNamespace(
            id=run.info.run_id,
            title=run.info.run_name,
            status=run.info.status,
            params=run.data.params,
            tags=run.data.tags,
            values={key: [(one.step, one.value) for one in ones] for key, ones in history.items()},
            info=run.info,
        )
    return result


# --- what is shown ------------------------------------------------------------------------------------------------


def test_a_sweep_is_a_parent_run_with_a_child_for_every_trial(store: Store) -> None:
    assert Mirror(store, uri_of(store)).sync()
    runs = shown(store)
    parent = runs.pop("")
    assert {name: run.title for name, run in runs.items()} == {
        "0000": "0000 freeze_then_unfreeze",
        "0001": "0001 freeze_then_unfreeze, pruned at 2",
        "0002": "0002 freeze_then_unfreeze",
    }
    assert {run.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.id}
    assert {run.tags["xfer.sweep"] for run in runs.values()} == {parent.tags["xfer.sweep"]}
    assert parent.title == PLAN["name"]
    assert parent.info.start_time == 1772359200000
    assert parent.params == {
        "data.source": "folder",
        "data.folder": "data/hymenoptera",
        "data.pack": "77aa",
        "data.train": "195",
        "data.val": "49",
        "data.test": "153",
        "data.split": "a stratified part of train was held out for validation",
        "data.classes": "2",
        "backbones": "mobilenetv2_100",
        "image_size": "128",
        "epochs": "3",
        "objective": "accuracy",
        "sampler": "tpe",
        "scheduler": "asha",
        "finalists": "1",
        "seeds": "1",
        "seed": "0",
        "space.strategy": "freeze_then_unfreeze, naive",
        "space.learning_rate": "1e-4 to 1e-2, log",
    }
    assert parent.tags["xfer.trials"] == "3"
    assert PLAN["question"] in parent.tags["mlflow.note.content"]


def test_a_trial_shows_its_recipe_and_every_epoch_once(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    run = shown(store)["0000"]
    assert run.params == {
        "data": "77aa",
        "classes": "2",
        "image_size": "128",
        "backbone": "mobilenetv2_100",
        "weights": "9f3c",
        "strategy": "freeze_then_unfreeze",
        "strategy.freeze_epochs": "2",
        "clip_norm": "none",
        "optimizer": "adam",
        "schedule": "onecycle",
        "augmentation": "flip",
        "mixing": "none",
        "loss": "cross_entropy",
        "learning_rate": "0.001",
        "weight_decay": "0.0001",
        "batch_size": "32",
        "epochs": "3",
        "seed": "0",
        "draw": "0",
    }
    assert run.values == {
        "train_loss": [(1, 1.0), (2, 0.5), (3, 1 / 3)],
        "train_accuracy": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "val_loss": [(1, 0.9), (2, 0.45), (3, 0.9 / 3)],
        "val_accuracy": [(1, 0.7), (2, 0.8), (3, 0.9)],
        "learning_rate": [(1, 1e-3), (2, 1e-3), (3, 1e-3)],
        "gradient_norm": [(1, 2.0), (2, 2.0), (3, 2.0)],
        "seconds": [(1, 3.0), (2, 3.0), (3, 3.0)],
        "images_per_second": [(1, 65.0), (2, 65.0), (3, 65.0)],
        "gap": [(number, epoch(number).gap) for number in (1, 2, 3)],
        "system/cpu_percent": [(1, 99.0), (2, 99.0), (3, 99.0)],
        "system/memory_mb": [(1, 512.0), (2, 512.0), (3, 512.0)],
        "cost/seconds": [(3, 9.0)],
        "cost/parameters": [(3, 2e6)],
        "cost/trainable_parameters": [(3, 2562.0)],
    }


def test_how_a_trial_ended_is_its_status(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    runs = shown(store)
    assert {name: (runs[name].status, runs[name].tags["xfer.status"]) for name in ("0000", "0001", "0002")} == {
        "0000": ("FINISHED", "finished"),
        "0001": ("KILLED", "pruned"),
        "0002": ("FAILED", "failed"),
    }
    assert [runs[name].tags.get("xfer.pruned_at") for name in ("0000", "0001")] == [None, "2"]
    assert [runs[name].tags.get("xfer.error") for name in ("0000", "0002")] == [None, "the loss is NaN at step 7"]


def test_finals_are_children_and_get_their_test_accuracy_once_it_is_opened(store: Store) -> None:
    end(store, "0000-s1", 3, "finished", "final")
    mirror = Mirror(store, uri_of(store))
    mirror.sync()
    run = shown(store)["0000-s1"]
    assert (run.tags["xfer.phase"], "test_accuracy" in run.values) == ("final", False)

    store.decide("openings", {"ranking": ["0000"]})
    store.add_test("0000-s1", opened(hits=9))
    for one in (mirror, mirror, Mirror(store, uri_of(store))):
        assert one.sync()
    run = shown(store)["0000-s1"]
    assert (run.values["test_accuracy"], run.values["test_loss"]) == ([(0, 0.9)], [(0, 0.4)])


def test_a_finished_sweep_counts_its_trials(store: Store) -> None:
    store.decide("openings", {"ranking": ["0000"]})
    Mirror(store, uri_of(store)).sync()
    parent = shown(store)[""]
    assert parent.status == "FINISHED"
    assert parent.values == {
        "trials_finished": [(3, 1.0)],
        "trials_pruned": [(3, 1.0)],
        "trials_failed": [(3, 1.0)],
        "best_val_accuracy": [(3, 0.9)],
    }


def test_a_sweep_without_a_finished_trial_failed(store: Store) -> None:
    other = Store(store.folder.parent / "other")
    other.put_plan({**PLAN, "name": "other", "trials": 1})
    end(other, "0000", 0, "failed")
    Mirror(other, uri_of(store)).sync()
    assert {name: run.status for name, run in shown(other).items()} == {"": "FAILED", "0000": "FAILED"}


def test_a_password_in_the_command_is_not_shown(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    everything = json.dumps({name: [run.params, run.tags] for name, run in shown(store).items()})
    assert "python -m sweeps.folder" in everything
    assert "hunter2" not in everything


def test_names_that_hold_markup_are_shown_as_they_are(store: Store) -> None:
    note = "bees\n\n![](http://evil.example/a.png) <img src=x> \x1b[31m could not be read"
    store.put_plan({**PLAN, "data": {**PLAN["data"], "notes": [note]}})
    Mirror(store, uri_of(store)).sync()
    description = shown(store)[""].tags["mlflow.note.content"]
    assert "\n    bees\\n\\n![](http://evil.example/a.png) <img src=x> \\u001b[31m could not be read\n" in description


# --- each thing once ----------------------------------------------------------------------------------------------


def test_syncing_again_changes_nothing_whoever_does_it(store: Store) -> None:
    mirror = Mirror(store, uri_of(store))
    mirror.sync()
    before = shown(store)
    for one in (mirror, mirror, Mirror(store, uri_of(store))):
        assert one.sync()
    after = shown(store)
    assert {name: vars(run) | {"info": None} for name, run in after.items()} == {
        name: vars(run) | {"info": None} for name, run in before.items()
    }


def test_another_mirror_goes_on_in_the_middle_of_a_trial(store: Store) -> None:
    begin(store, "0003", epochs=1)
    Mirror(store, uri_of(store)).sync()
    store.add_epoch("0003", epoch(2))
    store.add_epoch("0003", epoch(3))
    Mirror(store, uri_of(store)).sync()
    assert shown(store)["0003"].values["val_accuracy"] == [(1, 0.7), (2, 0.8), (3, 0.9)]


def test_a_trial_of_many_epochs_goes_in_a_few_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sent: list[int] = []
    log_batch = MlflowClient.log_batch

    def count(self: MlflowClient, run_id: str, metrics: Any = (), *rest: Any, **more: Any) -> Any:
        sent.append(len(metrics))
        return log_batch(self, run_id, metrics, *rest, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", count)
    store.add_trial(Trial("0003", "search", {}, RECIPE))
    for number in range(1, 131):
        store.add_epoch("0003", replace(epoch(number), val_accuracy=0.5))
    mirror = Mirror(store, uri_of(store))
    assert mirror.sync()
    assert [count for count in sent if count >= 100] == [440, 440, 440, 110]
    assert len(shown(store)["0003"].values["val_accuracy"]) == 130

    sent.clear()
    mirror.sync()
    assert sent == []


# --- in bulk ----------------------------------------------------------------------------------------------------------


def tables(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row about trials, with their names for the ids that MLflow threw dice for."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        names = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'xfer.trial'"))
        parents = {run: "parent" for (run,) in database.execute("SELECT run_uuid FROM runs") if run not in names}
        found = {}
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            rows = database.execute(f"SELECT * FROM {table} WHERE run_uuid IN ({','.join('?' * len(names))})", [*names])
            found[table] = sorted(str(tuple(_named(cell, {**names, **parents}) for cell in row)) for row in rows)
    return found


def _named(cell: Any, names: dict[str, str]) -> Any:
    for run, name in names.items():
        cell = cell.replace(run, name) if isinstance(cell, str) else cell
    return cell


@pytest.fixture
def many(store: Store) -> Store:
    """Fourteen trials that ended in every way there is."""
    for number in range(3, 14):
        end(
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
    monkeypatch.setattr(bulk, "LEAST", 1_000)
    assert Mirror(many, uris[1]).sync()
    found, wanted = map(tables, uris)
    assert [one for table in found for one in zip(found[table], wanted[table], strict=True) if one[0] != one[1]] == []
    assert len(found["runs"]) == 14


def test_what_came_in_bulk_is_known_to_the_next_mirror_and_to_this_one(many: Store) -> None:
    uri = default_uri(many.folder.parent)
    mirror = Mirror(many, uri)
    assert mirror.sync()
    before = tables(uri)
    assert mirror.sync()
    assert Mirror(many, uri).sync()
    assert tables(uri) == before


def test_a_bulk_that_fails_leaves_nothing_behind_and_the_client_goes_on(
    many: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, row = default_uri(many.folder.parent), bulk._row
    monkeypatch.setattr(bulk, "_row", lambda metric, run: {**row(metric, run), "value": None})
    mirror = Mirror(many, uri)
    assert not mirror.sync()
    assert tables(uri)["runs"] == []
    assert mirror.sync()
    assert len(tables(uri)["runs"]) == 14


def test_what_mlflow_might_refuse_is_left_to_its_client(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(
        bulk, "add", lambda client, uri, sweep, trials: sent.extend(each.record.trial for each in trials)
    )
    many.add_trial(Trial("0014", "search", {}, {**RECIPE, "backbone": "b" * 600}))
    many.add_record(replace(many.record("0002"), trial="0014"))  # type: ignore[type-var]
    Mirror(many, default_uri(many.folder.parent)).sync()
    assert sent == [f"{number:04d}" for number in range(14)]


def test_a_closed_trial_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    Mirror(store, uri_of(store)).sync()
    mirror = Mirror(store, uri_of(store))
    read: list[str] = []
    get = objects.get

    def note(path: Path) -> Any:
        read.append(path.name)
        return get(path)

    monkeypatch.setattr(objects, "get", note)
    assert mirror.sync()
    assert read == []


def test_an_interrupted_sweep_leaves_nothing_running_and_resuming_sets_it_back(store: Store) -> None:
    begin(store, "0003", epochs=1)
    uri = uri_of(store)

    def statuses() -> dict[str, str]:
        return {name: run.status for name, run in shown(store).items() if name in ("", "0003")}

    with Mirror(store, uri, period_seconds=0.05):
        wait_until(lambda: statuses() == {"": "RUNNING", "0003": "RUNNING"})
    assert statuses() == {"": "KILLED", "0003": "KILLED"}
    assert shown(store)["0003"].tags["xfer.status"] == "interrupted"
    with Mirror(store, uri, period_seconds=0.05) as mirror:
        wait_until(lambda: statuses() == {"": "RUNNING", "0003": "RUNNING"})
        end(store, "0003", 3, "finished")
        store.decide("openings", {"ranking": ["0003"]})
    assert mirror.complete
    assert statuses() == {"": "FINISHED", "0003": "FINISHED"}
    assert shown(store)["0003"].values["val_accuracy"] == [(1, 0.7), (2, 0.8), (3, 0.9)]


def test_more_trials_may_be_asked_for(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    store.put_plan({**PLAN, "trials": 4})
    begin(store, "0003", epochs=1)
    assert Mirror(store, uri_of(store)).sync()
    runs = shown(store)
    assert (runs[""].tags["xfer.trials"], runs["0003"].values["val_accuracy"]) == ("4", [(1, 0.7)])


def test_a_run_that_a_person_deleted_stays_deleted(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    tracking.connect(uri_of(store)).delete_run(shown(store)["0001"].id)
    assert Mirror(store, uri_of(store)).sync()
    assert shown(store)["0001"].info.lifecycle_stage == "deleted"


def test_two_sweeps_of_one_experiment_stay_apart(store: Store) -> None:
    other = Store(store.folder.parent / 'it\'s "other"')
    other.put_plan({**PLAN, "name": 'it\'s "other"'})
    begin(other, "0007")
    for one in (store, other):
        assert Mirror(one, uri_of(store)).sync()
        assert Mirror(one, uri_of(store)).sync()
    client = tracking.connect(uri_of(store))
    experiment = client.get_experiment_by_name("folder")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    children = [(run.data.tags["xfer.trial"], names[run.data.tags["mlflow.parentRunId"]]) for run in runs
                if "xfer.trial" in run.data.tags]  # fmt: skip
    assert sorted(children) == [
        ("0000", PLAN["name"]),
        ("0001", PLAN["name"]),
        ("0002", PLAN["name"]),
        ("0007", 'it\'s "other"'),
    ]


def test_a_sweep_that_was_not_begun_is_nothing_to_mirror(tmp_path: Path) -> None:
    assert Mirror(Store(tmp_path / "none"), default_uri(tmp_path)).sync()
    assert list(tmp_path.iterdir()) == []


# --- when the server fails ----------------------------------------------------------------------------------------


def test_a_server_that_is_absent_is_logged_once_and_raises_nothing(
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


@pytest.mark.parametrize("method", ["create_run", "log_batch", "set_terminated", "search_runs", "set_tag"])
@pytest.mark.parametrize("carried_out", [True, False], ids=["reply lost", "request lost"])
def test_an_error_at_any_request_is_mended_by_the_next_syncs(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str, carried_out: bool
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    store.put_plan({**PLAN, "trials": 4})  # so that tags of the parent's change as well
    begin(store, "0003", epochs=2)
    uri = uri_of(store)
    work = getattr(MlflowClient, method)
    calls = 0

    def every_second_fails(self: MlflowClient, *rest: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls % 2 and not carried_out:
            raise MlflowException("500 from the server")
        result = work(self, *rest, **more)
        if calls % 2:
            raise MlflowException("the reply was lost")
        return result

    monkeypatch.setattr(MlflowClient, method, every_second_fails)
    mirror = Mirror(store, uri)
    for _ in range(20):
        mirror.sync()
    monkeypatch.undo()
    assert mirror.sync()
    assert {name: (run.status, run.values.get("val_accuracy")) for name, run in shown(store).items()} == {
        "": ("KILLED", None),
        "0000": ("FINISHED", [(1, 0.7), (2, 0.8), (3, 0.9)]),
        "0001": ("KILLED", [(1, 0.7), (2, 0.8)]),
        "0002": ("FAILED", [(1, 0.7)]),
        "0003": ("KILLED", [(1, 0.7), (2, 0.8)]),
    }


def test_a_run_that_was_created_after_all_goes_to_the_bin(store: Store) -> None:
    mirror = Mirror(store, uri_of(store))
    mirror.sync()
    client = tracking.connect(uri_of(store))
    original = shown(store)["0001"]
    late = client.create_run(
        original.info.experiment_id, tags={k: original.tags[k] for k in ("xfer.sweep", "xfer.trial")}
    )
    assert Mirror(store, uri_of(store)).sync()
    assert client.get_run(late.info.run_id).info.lifecycle_stage == "deleted"
    assert client.get_run(original.id).info.lifecycle_stage == "active"
    assert Mirror(store, uri_of(store)).sync()


def test_one_trial_that_mlflow_refuses_stops_no_other(store: Store) -> None:
    store.add_trial(Trial("0000-bad", "search", {}, {**RECIPE, "a=b?*": "no key for MLflow"}))
    mirror = Mirror(store, uri_of(store))
    assert not mirror.sync()
    assert shown(store)["0002"].status == "FAILED"


def test_a_damaged_epoch_that_is_trained_again_arrives(store: Store) -> None:
    begin(store, "0003", epochs=2)
    damaged = store.trial_folder("0003") / "epochs" / "0001.json"
    damaged.write_text('{"epoch": 1, "tra')
    mirror = Mirror(store, uri_of(store))
    assert mirror.sync()
    store.add_epoch("0003", epoch(1))
    assert mirror.sync()
    assert sorted(shown(store)["0003"].values["val_accuracy"]) == [(1, 0.7), (2, 0.8)]


def test_a_server_that_hangs_holds_nobody_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(client.SETTINGS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never says a word
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
        wait_until(lambda: "0002" in shown(store, uri) and shown(store, uri)["0002"].status == "FAILED", 60)
        begin(store, "0003", epochs=1)
        wait_until(lambda: "0003" in shown(store, uri), 60)
    end(store, "0003", 3, "finished")
    time.sleep(1)
    assert not mirror.close()

    with server(tmp_path / "server", port):
        wait_until(Mirror(store, uri).sync, 60)
        runs = shown(store, uri)
    assert {name: (run.status, run.values.get("val_accuracy")) for name, run in runs.items()} == {
        "": ("KILLED", None),
        "0000": ("FINISHED", [(1, 0.7), (2, 0.8), (3, 0.9)]),
        "0001": ("KILLED", [(1, 0.7), (2, 0.8)]),
        "0002": ("FAILED", [(1, 0.7)]),
        "0003": ("FINISHED", [(1, 0.7), (2, 0.8), (3, 0.9)]),
    }


@pytest.mark.slow
def test_processes_that_create_the_database_at_once_all_get_it(tmp_path: Path) -> None:
    code = "import sys; from sweeps.engine.tracking import connect; connect(sys.argv[1]).create_experiment(sys.argv[2])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, default_uri(tmp_path), name], stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", ""]
    found = tracking.connect(default_uri(tmp_path)).search_experiments()
    assert sorted(experiment.name for experiment in found) == ["Default", "a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


# --- the winner's model -------------------------------------------------------------------------------------------

MODEL = {
    "backbone": "mobilenetv2_100",
    "backbone_args": {},
    "num_classes": 2,
    "classes": ["ants", "bees"],
    "image_size": 8,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "resize": "bilinear",
}


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported model, and a stand-in for xfer/export.py that tells by brightness and needs no torch."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "model.safetensors").write_bytes(b"\0" * 64)

    def load_classifier(folder: Path) -> SimpleNamespace:
        assert json.loads((folder / "model.json").read_text()) == MODEL

        def probabilities(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            bright = images.reshape(len(images), -1).mean(axis=1) / 255
            return np.stack([1 - bright, bright], axis=1)

        return SimpleNamespace(classes=("ants", "bees"), image_size=8, probabilities=probabilities)

    stand_in = ModuleType("xfer.export")
    stand_in.load_classifier = load_classifier  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xfer.export", stand_in)
    return folder


def test_the_winners_model_loads_back_and_predicts_without_pickle(
    store: Store, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    mirror = Mirror(store, uri_of(store))
    assert mirror.log_model("0000", exported, {"test_accuracy": 0.93})
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr("pickle.load", None)
    client = tracking.connect(uri_of(store))
    parent = shown(store)[""]
    [model] = client.search_logged_models([parent.info.experiment_id])
    assert (model.name, model.status, model.source_run_id) == (PLAN["name"], "READY", parent.id)
    assert model.params["strategy.freeze_epochs"] == "2"
    assert [(metric.key, metric.value) for metric in model.metrics or []] == [("test_accuracy", 0.93)]
    assert parent.values["test_accuracy"] == [(0, 0.93)]
    assert (parent.tags["xfer.winner"], parent.tags["xfer.model"]) == ("0000", model.model_id)

    folder = Path(model.artifact_location.removeprefix("file://").replace("%20", " "))
    assert sorted(path.name for path in folder.iterdir()) == [
        "MLmodel", "README.md", "conda.yaml", "data", "python_env.yaml", "requirements.txt"]  # fmt: skip
    assert "\n    ants\n    bees\n" in (folder / "README.md").read_text()
    about = mlflow.models.Model.load(str(folder))
    assert about.metadata == MODEL
    loaded = mlflow.pyfunc.load_model(str(folder))
    images = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)])
    assert loaded.predict(images).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        loaded.predict(np.zeros((2, 9, 9, 3), np.uint8))


def test_the_winners_model_is_logged_once_and_later_if_it_failed(
    store: Store, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def fail(*_: Any) -> None:
        raise ConnectionError("the artifact store is away")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", fail)
    mirror = Mirror(store, uri_of(store))
    assert not mirror.log_model("0000", exported, {"test_accuracy": 0.93})
    monkeypatch.undo()
    assert mirror.sync()
    assert Mirror(store, uri_of(store)).log_model("0000", exported, {"test_accuracy": 0.93})
    client = tracking.connect(uri_of(store))
    models = client.search_logged_models([shown(store)[""].info.experiment_id])
    assert sorted(str(model.status) for model in models) == ["FAILED", "READY"]


# --- manners ------------------------------------------------------------------------------------------------------


def test_the_module_brings_neither_mlflow_nor_torch_nor_ray_along() -> None:
    code = "import sys, sweeps.engine.tracking; print({'mlflow', 'torch', 'ray', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_mirroring_prints_nothing_and_phones_nobody(store: Store, tmp_path: Path) -> None:
    code = f"""
import socket, sys
from pathlib import Path
def refuse(*_):
    raise AssertionError("a connection was attempted")
socket.socket.connect = socket.getaddrinfo = refuse
from sweeps.engine.store import Store
from sweeps.engine.tracking import Mirror, default_uri
assert Mirror(Store(Path({str(store.folder)!r})), default_uri(Path({str(tmp_path)!r}))).sync()
import mlflow.telemetry
assert mlflow.telemetry.get_telemetry_client() is None
assert not {{"torch", "ray"}} & set(sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "CI", "MLFLOW"))}
    environment["HOME"] = str(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "home").exists()


# --- helpers ------------------------------------------------------------------------------------------------------


def wait_until(done: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not _quietly(done):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)


def _quietly(done: Callable[[], bool]) -> bool:
    try:
        return done()
    except Exception:  # a server that is not up yet
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """A real MLflow server, killed the hard way."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", default_uri(folder), "--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, start_new_session=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
