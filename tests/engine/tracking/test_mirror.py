"""MLflow shows what the store contains, everything exactly once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine import tracking
from sweeps.engine.storage import json_objects
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.tracking import Mirror, default_tracking_uri
from sweeps.engine.tracking import mirror as mirror_module
from tests.engine.tracking.mirror_helpers import (
    PLAN,
    RECIPE,
    begin_trial,
    end_trial,
    epoch,
    mlflow_contents,
    uri_of,
    wait_until,
    write_test_opening,
)
from xfer.records import NOISE_KINDS, CorruptionScore, as_dict

# --- contents ------------------------------------------------------------------------------------------------------


def test_a_sweep_is_a_parent_run_with_one_child_run_per_trial(store: Store) -> None:
    assert Mirror(store, uri_of(store)).sync()
    runs = mlflow_contents(store)
    parent = runs.pop("")
    assert {name: run.title for name, run in runs.items()} == {
        "0000": "0000 freeze_then_unfreeze",
        "0001": "0001 freeze_then_unfreeze, stopped early at epoch 2",
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


def test_a_trial_has_its_recipe_as_params_and_each_epoch_once(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    run = mlflow_contents(store)["0000"]
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
        "parameters": "2000000",
        "trainable_parameters": "2562",
        "arithmetic": "float32",
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
    }


def test_the_status_of_a_run_says_how_its_trial_ended(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    runs = mlflow_contents(store)
    assert {name: (runs[name].status, runs[name].tags["xfer.status"]) for name in ("0000", "0001", "0002")} == {
        "0000": ("FINISHED", "finished"),
        "0001": ("FINISHED", "stopped early"),
        "0002": ("FAILED", "failed"),
    }
    assert [runs[name].tags.get("xfer.pruned_at") for name in ("0000", "0001")] == [None, "2"]
    assert [runs[name].tags.get("xfer.error") for name in ("0000", "0002")] == [None, "the loss is NaN at step 7"]


def test_finals_are_child_runs_and_get_their_test_accuracy_once_it_is_known(store: Store) -> None:
    end_trial(store, "0000-s1", 3, "finished", "final")
    mirror = Mirror(store, uri_of(store))
    mirror.sync()
    run = mlflow_contents(store)["0000-s1"]
    assert (run.tags["xfer.phase"], "test_accuracy" in run.values) == ("final", False)

    store.decide("openings", {"ranking": ["0000"]})
    store.add_test("0000-s1", write_test_opening(hits=9))
    for each in (mirror, mirror, Mirror(store, uri_of(store))):
        assert each.sync()
    run = mlflow_contents(store)["0000-s1"]
    assert (run.values["test_accuracy"], run.values["test_loss"]) == ([(0, 0.9)], [(0, 0.4)])
    assert "test_noisy_accuracy" not in run.values


def test_accuracies_under_noise_follow_when_they_are_measured(store: Store) -> None:
    end_trial(store, "0000-s1", 3, "finished", "final")
    store.add_test("0000-s1", write_test_opening(hits=9))
    mirror = Mirror(store, uri_of(store))
    assert mirror.sync()
    for kind in NOISE_KINDS:
        store.add_noise("0000-s1", [CorruptionScore(kind, 1, 10, 6)])
    assert store.complete_noise("0000-s1")
    for each in (mirror, mirror, Mirror(store, uri_of(store))):
        assert each.sync()
    run = mlflow_contents(store)["0000-s1"]
    assert (run.values["test_accuracy"], run.values["test_noisy_accuracy"]) == ([(0, 0.9)], [(0, 0.6)])
    assert [run.values[f"test_noise/{kind}"] for kind in NOISE_KINDS] == [[(0, 0.6)]] * len(NOISE_KINDS)


# --- progress ------------------------------------------------------------------------------------------------------

PROGRESS = {
    "trials_finished": [(0, 0.0), (1, 1.0), (2, 1.0), (3, 1.0)],
    "trials_pruned": [(0, 0.0), (1, 0.0), (2, 1.0), (3, 1.0)],
    "trials_failed": [(0, 0.0), (1, 0.0), (2, 0.0), (3, 1.0)],
    "best_val_accuracy": [(1, 0.9), (2, 0.9), (3, 0.9)],
}
"""The curves of the parent run of `store`, whose trials ended in the order of their names."""


def end_times(store: Store) -> list[int]:
    """When the trials of a sweep ended, in ms since the epoch."""
    folders = sorted(path for path in (store.folder / "trials").iterdir() if "-" not in path.name)
    return [(folder / "record.json").stat().st_mtime_ns // 10**6 for folder in folders]


def test_a_finished_sweep_has_its_progress_as_curves(store: Store) -> None:
    store.decide("openings", {"ranking": ["0000"]})
    Mirror(store, uri_of(store)).sync()
    parent = mlflow_contents(store)[""]
    assert parent.status == "FINISHED"
    assert parent.values == PROGRESS


def test_each_step_of_the_progress_has_the_time_at_which_its_trial_ended(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    client = tracking.connect_mlflow(uri_of(store))
    history = client.get_metric_history(mlflow_contents(store)[""].id, "trials_finished")
    created = 1772359200000  # of the plan
    assert [metric.timestamp for metric in history] == [created, *end_times(store)]


def test_progress_is_logged_while_the_sweep_runs_and_continues_after_it_was_interrupted(store: Store) -> None:
    store.put_plan({**PLAN, "trials": 6})
    begin_trial(store, "0003", epochs=1)
    begin_trial(store, "0004", epochs=1)
    uri = uri_of(store)

    def parent() -> Any:
        return mlflow_contents(store)[""]

    with Mirror(store, uri, period_seconds=0.05):
        wait_until(lambda: parent().values["trials_running"] == [(5, 2.0)])
        assert parent().values == {**PROGRESS, "trials_running": [(5, 2.0)]}
        end_trial(store, "0003", 3, "pruned")
        wait_until(lambda: parent().values["trials_pruned"][-1] == (4, 2.0))
    with Mirror(store, uri, period_seconds=0.05):
        wait_until(lambda: parent().values["trials_running"][-1] == (5, 1.0))
        end_trial(store, "0004", 3, "finished")
        end_trial(store, "0005", 3, "failed")
    expected = {
        "trials_finished": [*PROGRESS["trials_finished"], (4, 1.0), (5, 2.0), (6, 2.0)],
        "trials_pruned": [*PROGRESS["trials_pruned"], (4, 2.0), (5, 2.0), (6, 2.0)],
        "trials_failed": [*PROGRESS["trials_failed"], (4, 1.0), (5, 1.0), (6, 2.0)],
        "best_val_accuracy": [*PROGRESS["best_val_accuracy"], (4, 0.9), (5, 0.9), (6, 0.9)],
    }
    values = parent().values
    running = values.pop("trials_running")
    assert values == expected
    assert running[-1] == (6, 0.0)
    before = parent().values
    assert Mirror(store, uri).sync()
    assert parent().values == before


def test_a_trial_that_becomes_visible_late_changes_no_earlier_step(store: Store) -> None:
    hidden = store.trial_folder("0001")
    hidden.rename(store.folder / "0001")
    mirror = Mirror(store, uri_of(store))
    assert mirror.sync()
    first_steps = {name: [(step, value) for step, value in PROGRESS[name] if step < 2] for name in PROGRESS}
    seen = mlflow_contents(store)[""].values
    assert {name: values[:-1] for name, values in seen.items()} == first_steps
    (store.folder / "0001").rename(hidden)
    for each in (mirror, Mirror(store, uri_of(store))):
        assert each.sync()
    values = mlflow_contents(store)[""].values
    assert {name: points[: len(seen[name])] for name, points in values.items()} == seen
    assert {name: points[-1] for name, points in values.items()} == {name: PROGRESS[name][-1] for name in PROGRESS}
    assert all(len(dict(points)) == len(points) for points in values.values())


@pytest.mark.parametrize(
    ("objective", "metric", "curve"),
    [
        ("loss", "best_val_loss", [(1, 0.9), (2, 0.9 / 3)]),
        ("accuracy,seconds", "best_val_accuracy", [(1, 0.7), (2, 0.9)]),
    ],
)
def test_the_best_value_is_that_of_the_deciding_objective(
    store: Store, objective: str, metric: str, curve: list[tuple[int, float]]
) -> None:
    other = Store(store.folder.parent / "other")
    other.put_plan({**PLAN, "name": "other", "objective": objective.split(","), "trials": 2})
    end_trial(other, "0000", 1, "finished")
    end_trial(other, "0001", 3, "finished")
    Mirror(other, uri_of(store)).sync()
    assert mlflow_contents(other)[""].values[metric] == curve


def test_a_sweep_that_an_earlier_version_tracked_is_continued(store: Store) -> None:
    """It closed stopped trials as KILLED, and logged the counts once, at the end."""
    from mlflow.entities import Metric, RunTag

    uri = uri_of(store)
    client = tracking.connect_mlflow(uri)
    assert Mirror(store, uri).sync()
    runs = mlflow_contents(store)
    client.delete_run(runs[""].id)
    old = client.create_run(runs[""].info.experiment_id, 0, {**runs[""].tags, "xfer.status": "interrupted"})
    counts = {"trials_finished": 1.0, "trials_pruned": 1.0, "trials_failed": 1.0, "best_val_accuracy": 0.9}
    client.log_batch(old.info.run_id, [Metric(key, value, 5, 3) for key, value in counts.items()])
    client.set_terminated(old.info.run_id, "KILLED")
    client.log_batch(runs["0001"].id, tags=[RunTag("xfer.status", "pruned")])
    client.set_terminated(runs["0001"].id, "KILLED")
    trials = {name: run.values for name, run in runs.items() if name}

    for _ in range(2):
        assert Mirror(store, uri).sync()
    active = client.search_runs([old.info.experiment_id], "tags.`xfer.trials` != ''")
    assert [run.info.run_id for run in active] == [old.info.run_id]
    history = {
        key: [(metric.step, metric.value) for metric in client.get_metric_history(old.info.run_id, key)]
        for key in counts
    }
    assert {key: sorted(points) for key, points in history.items()} == PROGRESS
    found = client.get_run(runs["0001"].id)
    assert (found.info.status, found.data.tags["xfer.status"]) == ("FINISHED", "stopped early")
    again = client.search_runs([old.info.experiment_id], "tags.`xfer.trial` != ''")
    histories = {
        run.data.tags["xfer.trial"]: {
            key: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        for run in again
    }
    assert histories == trials


def test_the_parent_run_shows_the_cost_of_the_machines_so_far(store: Store) -> None:
    assert Mirror(store, uri_of(store)).sync()
    assert "cost_usd" not in mlflow_contents(store)[""].values  # no price is known
    machines = {"node_type": "l4", "usd_per_hour": 0.5, "seconds": 7200.0}
    store.put_spending(None, [machines])
    assert Mirror(store, uri_of(store)).sync()
    assert mlflow_contents(store)[""].values["cost_usd"] == [(3, 1.0)]
    store.put_spending(None, [{**machines, "seconds": 3600.0}])
    assert Mirror(store, uri_of(store)).sync()
    assert Mirror(store, uri_of(store)).sync()
    assert mlflow_contents(store)[""].values["cost_usd"] == [(3, 1.0), (3, 1.5)]


def test_a_sweep_without_a_finished_trial_failed(store: Store) -> None:
    other = Store(store.folder.parent / "other")
    other.put_plan({**PLAN, "name": "other", "trials": 1})
    end_trial(other, "0000", 0, "failed")
    Mirror(other, uri_of(store)).sync()
    assert {name: run.status for name, run in mlflow_contents(other).items()} == {"": "FAILED", "0000": "FAILED"}


def test_a_password_in_the_command_is_not_shown(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    everything = json.dumps({name: [run.params, run.tags] for name, run in mlflow_contents(store).items()})
    assert "python -m sweeps.folder" in everything
    assert "hunter2" not in everything


def test_names_that_hold_markup_are_shown_as_they_are(store: Store) -> None:
    note = "bees\n\n![](http://evil.example/a.png) <img src=x> \x1b[31m could not be read"
    store.put_plan({**PLAN, "data": {**PLAN["data"], "notes": [note]}})
    Mirror(store, uri_of(store)).sync()
    description = mlflow_contents(store)[""].tags["mlflow.note.content"]
    assert "\n    bees\\n\\n![](http://evil.example/a.png) <img src=x> \\u001b[31m could not be read\n" in description


# --- exactly once --------------------------------------------------------------------------------------------------


def test_syncing_again_changes_nothing_from_the_same_or_another_mirror(store: Store) -> None:
    mirror = Mirror(store, uri_of(store))
    mirror.sync()
    before = mlflow_contents(store)
    for one in (mirror, mirror, Mirror(store, uri_of(store))):
        assert one.sync()
    after = mlflow_contents(store)
    assert {name: vars(run) | {"info": None} for name, run in after.items()} == {
        name: vars(run) | {"info": None} for name, run in before.items()
    }


def test_another_mirror_continues_in_the_middle_of_a_trial(store: Store) -> None:
    begin_trial(store, "0003", epochs=1)
    Mirror(store, uri_of(store)).sync()
    store.add_epoch("0003", epoch(2))
    store.add_epoch("0003", epoch(3))
    Mirror(store, uri_of(store)).sync()
    assert mlflow_contents(store)["0003"].values["val_accuracy"] == [(1, 0.7), (2, 0.8), (3, 0.9)]


def test_a_trial_of_many_epochs_is_sent_in_few_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sent: list[int] = []
    log_batch = MlflowClient.log_batch

    def counting(self: MlflowClient, run_id: str, metrics: Any = (), *args: Any, **kwargs: Any) -> Any:
        sent.append(len(metrics))
        return log_batch(self, run_id, metrics, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    store.add_trial(Trial("0003", "search", {}, RECIPE))
    for number in range(1, 131):
        store.add_epoch("0003", replace(epoch(number), val_accuracy=0.5))
    mirror = Mirror(store, uri_of(store))
    assert mirror.sync()
    assert [count for count in sent if count >= 100] == [440, 440, 440, 110]
    assert len(mlflow_contents(store)["0003"].values["val_accuracy"]) == 130

    sent.clear()
    mirror.sync()
    assert sent == []


def test_a_closed_trial_is_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    Mirror(store, uri_of(store)).sync()
    mirror = Mirror(store, uri_of(store))
    read: list[str] = []
    get = json_objects.get

    def recording(path: Path) -> Any:
        read.append(path.name)
        return get(path)

    monkeypatch.setattr(json_objects, "get", recording)
    assert mirror.sync()
    assert read == []


def reported(name: str, epochs: int) -> dict[str, Any]:
    """The record that a running trial reports after an epoch."""
    return {"trial": name, "status": "pruned", "epochs": [as_dict(epoch(number)) for number in range(1, epochs + 1)]}


def steps(store: Store, name: str) -> list[int]:
    """The epochs that MLflow has of a trial."""
    return [step for step, _ in mlflow_contents(store)[name].values.get("val_accuracy", [])]


def test_with_reports_from_the_driver_only_trials_that_have_changed_are_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_plan({**PLAN, "trials": 8})
    for name in ("0003", "0004", "0005"):
        begin_trial(store, name, 1)
    reads: list[str] = []
    for function in ("get", "list_objects"):
        original = getattr(json_objects, function)
        monkeypatch.setattr(json_objects, function, lambda path, f=original: reads.append(str(path)) or f(path))
    mirror = Mirror(store, uri_of(store), period_seconds=0.05).start()
    begin_trial(store, "0006")
    mirror.report("0006")
    wait_until(lambda: "0006" in mlflow_contents(store))  # in the last sync that may have read every trial
    reads.clear()
    store.add_epoch("0003", epoch(2))
    store.add_epoch("0004", epoch(2))  # is not reported
    mirror.report("0003", reported("0003", 2))
    wait_until(lambda: steps(store, "0003") == [1, 2])
    begin_trial(store, "0007")
    mirror.report("0007")
    wait_until(lambda: "0007" in mlflow_contents(store))
    end_trial(store, "0005", 2, "pruned")
    mirror.report("0005")
    wait_until(lambda: mlflow_contents(store)["0005"].tags["xfer.status"] == "stopped early")
    trials = {Path(path).relative_to(store.folder).parts[1] for path in reads if "trials" in path}
    assert trials - {"0006"} == {"0005", "0007"}  # not even 0003: its report holds its epochs
    assert steps(store, "0004") == [1]
    assert mirror.close()  # its last sync reads every unfinished trial
    assert steps(store, "0004") == [1, 2]
    assert [steps(store, name) for name in ("0003", "0005", "0007")] == [[1, 2], [1, 2], []]


def test_a_change_that_was_not_reported_is_found_by_the_next_full_sync(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.engine.tracking.mirror.FULL_SYNC_SECONDS", 0.0)
    store.put_plan({**PLAN, "trials": 8})
    begin_trial(store, "0003", 1)
    with Mirror(store, uri_of(store), period_seconds=0.05) as mirror:
        mirror.report("0003", reported("0003", 1))
        wait_until(lambda: steps(store, "0003") == [1])
        store.add_epoch("0003", epoch(2))
        wait_until(lambda: steps(store, "0003") == [1, 2])


def test_a_report_of_a_sync_that_failed_is_not_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_plan({**PLAN, "trials": 8})
    begin_trial(store, "0003", 1)
    mirror = Mirror(store, uri_of(store), period_seconds=0.05).start()
    wait_until(lambda: steps(store, "0003") == [1])
    log_batch, failures = mirror_module.log_batch, []

    def fail_once(*arguments: Any, **options: Any) -> None:
        if not failures:
            failures.append(arguments)
            raise ConnectionError("the server is away")
        log_batch(*arguments, **options)

    monkeypatch.setattr(mirror_module, "log_batch", fail_once)
    store.add_epoch("0003", epoch(2))
    mirror.report("0003", reported("0003", 2))
    wait_until(lambda: steps(store, "0003") == [1, 2])
    assert len(failures) == 1
    assert mirror.close()


def test_an_interrupted_sweep_has_no_running_run_until_it_is_resumed(store: Store) -> None:
    begin_trial(store, "0003", epochs=1)
    uri = uri_of(store)

    def statuses() -> dict[str, str]:
        return {name: run.status for name, run in mlflow_contents(store).items() if name in ("", "0003")}

    with Mirror(store, uri, period_seconds=0.05):
        wait_until(lambda: statuses() == {"": "RUNNING", "0003": "RUNNING"})
    assert statuses() == {"": "KILLED", "0003": "KILLED"}
    assert mlflow_contents(store)["0003"].tags["xfer.status"] == "interrupted"
    with Mirror(store, uri, period_seconds=0.05) as mirror:
        wait_until(lambda: statuses() == {"": "RUNNING", "0003": "RUNNING"})
        end_trial(store, "0003", 3, "finished")
        store.decide("openings", {"ranking": ["0003"]})
    assert mirror.complete
    assert statuses() == {"": "FINISHED", "0003": "FINISHED"}
    assert mlflow_contents(store)["0003"].values["val_accuracy"] == [(1, 0.7), (2, 0.8), (3, 0.9)]


def test_a_sweep_can_be_extended_by_more_trials(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    store.put_plan({**PLAN, "trials": 4})
    begin_trial(store, "0003", epochs=1)
    assert Mirror(store, uri_of(store)).sync()
    runs = mlflow_contents(store)
    assert (runs[""].tags["xfer.trials"], runs["0003"].values["val_accuracy"]) == ("4", [(1, 0.7)])


def test_a_run_that_a_user_deleted_stays_deleted(store: Store) -> None:
    Mirror(store, uri_of(store)).sync()
    tracking.connect_mlflow(uri_of(store)).delete_run(mlflow_contents(store)["0001"].id)
    assert Mirror(store, uri_of(store)).sync()
    assert mlflow_contents(store)["0001"].info.lifecycle_stage == "deleted"


def test_two_sweeps_of_one_experiment_are_kept_apart(store: Store) -> None:
    other = Store(store.folder.parent / 'it\'s "other"')
    other.put_plan({**PLAN, "name": 'it\'s "other"'})
    begin_trial(other, "0007")
    for one in (store, other):
        assert Mirror(one, uri_of(store)).sync()
        assert Mirror(one, uri_of(store)).sync()
    client = tracking.connect_mlflow(uri_of(store))
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


def test_a_sweep_that_has_not_started_writes_nothing(tmp_path: Path) -> None:
    assert Mirror(Store(tmp_path / "none"), default_tracking_uri(tmp_path)).sync()
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_whose_first_sync_is_delayed_syncs_when_it_is_closed(store: Store) -> None:
    mirror = Mirror(store, uri_of(store)).start(delay_seconds=3600)
    assert not mirror.complete
    assert mirror.close(60)
    assert set(mlflow_contents(store)) >= {""}


# --- imports and output --------------------------------------------------------------------------------------------


def test_the_package_imports_neither_mlflow_nor_torch_nor_ray() -> None:
    code = "import sys, sweeps.engine.tracking; print({'mlflow', 'torch', 'ray', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.slow
def test_mirroring_prints_nothing_and_opens_no_connection(store: Store, tmp_path: Path) -> None:
    code = f"""
import socket, sys
from pathlib import Path
def refuse(*_):
    raise AssertionError("a connection was attempted")
socket.socket.connect = socket.getaddrinfo = refuse
from sweeps.engine.storage.store import Store
from sweeps.engine.tracking import Mirror, default_tracking_uri
assert Mirror(Store(Path({str(store.folder)!r})), default_tracking_uri(Path({str(tmp_path)!r}))).sync()
import mlflow.telemetry
assert mlflow.telemetry.get_telemetry_client() is None
assert not {{"torch", "ray"}} & set(sys.modules)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "CI", "MLFLOW"))}
    environment["HOME"] = str(tmp_path / "home")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "home").exists()
