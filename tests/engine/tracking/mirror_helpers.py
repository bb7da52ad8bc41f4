"""Helpers of the mirror's tests: write a sweep to a store, and read it back from MLflow."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sweeps.engine import tracking
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.tracking import default_tracking_uri
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


def begin_trial(store: Store, name: str, epochs: int = 0, phase: Phase = "search") -> None:
    store.add_trial(Trial(name, phase, {"strategy": "naive"}, RECIPE))
    for number in range(1, epochs + 1):
        store.add_epoch(name, epoch(number))


def end_trial(store: Store, name: str, epochs: int, status: Status, phase: Phase = "search") -> None:
    begin_trial(store, name, epochs, phase)
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


def write_test_opening(hits: int) -> Evaluation:
    return Evaluation("test", 0.4, tuple(range(10)), tuple(index < hits for index in range(10)))


def uri_of(store: Store) -> str:
    return default_tracking_uri(store.folder.parent)


def mlflow_contents(store: Store, uri: str | None = None) -> dict[str, Any]:
    """All runs in MLflow, deleted ones included, by name of the trial; the parent has the name ''."""
    from mlflow.entities import ViewType

    client = tracking.connect_mlflow(uri or uri_of(store))
    experiment = client.get_experiment_by_name("folder")
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL) if experiment else []
    result: dict[str, Any] = {}
    for run in runs:
        name = run.data.tags.get("xfer.trial", "")
        assert name not in result, f"{name!r} has two runs"
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


def tables(uri: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows about trials, with MLflow's random run ids replaced by the names of the trials."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        names = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'xfer.trial'"))
        parents = {run: "parent" for (run,) in database.execute("SELECT run_uuid FROM runs") if run not in names}
        rows_by_table = {}
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            rows = database.execute(f"SELECT * FROM {table} WHERE run_uuid IN ({','.join('?' * len(names))})", [*names])
            ids = {**names, **parents}
            rows_by_table[table] = sorted(str(tuple(_replace_ids(cell, ids) for cell in row)) for row in rows)
    return rows_by_table


def _replace_ids(cell: Any, names: dict[str, str]) -> Any:
    for run, name in names.items():
        cell = cell.replace(run, name) if isinstance(cell, str) else cell
    return cell


def wait_until(done: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not _false_on_error(done):
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.1)


def _false_on_error(done: Callable[[], bool]) -> bool:
    try:
        return done()
    except Exception:  # a server that is not up yet
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """A real MLflow server, ended by SIGKILL."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        default_tracking_uri(folder),
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, start_new_session=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
