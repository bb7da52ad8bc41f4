"""The MLflow UI as a person meets it: a real server, a real browser, and what must be refused."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sweeps.engine.console.ui import serve_ui
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.tracking import Mirror, default_tracking_uri
from xfer.records import Epoch, Evaluation, Phase, Record, Status

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = Path("/usr/bin/chromium")
NAME = "folder-hymenoptera-3fa2c1"
PLAN: dict[str, Any] = {
    "experiment": "folder",
    "name": NAME,
    "question": "Which way of transferring tells ants from bees best? <img src=x onerror=\"document.title='owned'\">",
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
    "space": {"strategy": "scratch, naive, freeze_then_unfreeze", "learning_rate": "1e-4 to 1e-2, log"},
    "trials": 6,
    "epochs": 6,
    "sampler": "tpe",
    "scheduler": "asha",
    "finalists": 1,
    "seeds": 2,
    "seed": 0,
    "provenance": {
        "command": "python -m sweeps.folder --data data/hymenoptera --trials 6",
        "commit": "4b825dc",
        "versions": {"torch": "2.15.0"},
        "machine": {"cpus": 2},
        "created": "2026-03-01T10:00:00+00:00",
    },
}
TRIALS: list[tuple[str, str, Status, int, float]] = [
    ("0000", "naive", "finished", 6, 0.90),
    ("0001", "freeze_then_unfreeze", "finished", 6, 0.94),
    ("0002", "scratch", "pruned", 2, 0.55),
    ("0003", "linear_probe", "finished", 6, 0.91),
    ("0004", "naive", "failed", 1, 0.50),
    ("0005", "clip", "pruned", 4, 0.84),
    ("0001-s1", "freeze_then_unfreeze", "finished", 6, 0.93),
    ("0001-s2", "freeze_then_unfreeze", "finished", 6, 0.95),
]
BEST_FIRST = [
    ("0001-s2 freeze_then_unfreeze", "freeze_then_unfreeze", 0.948, "finished"),
    ("0001 freeze_then_unfreeze", "freeze_then_unfreeze", 0.938, "finished"),
    ("0001-s1 freeze_then_unfreeze", "freeze_then_unfreeze", 0.928, "finished"),
    ("0003 linear_probe", "linear_probe", 0.908, "finished"),
    ("0000 naive", "naive", 0.898, "finished"),
    ("0005 clip, stopped early at epoch 4", "clip", 0.831, "stopped early"),
    ("0002 scratch, stopped early at epoch 2", "scratch", 0.542, "stopped early"),
    ("0004 naive", "naive", 0.5, "failed"),
]
"""The table at the printed address: name, strategy, validation accuracy and status of each trial."""
COLUMNS = ["strategy", "val_accuracy", "test_accuracy", "xfer.status", "xfer.phase", "optimizer"]
"""The first columns of that table, after those that MLflow always shows."""
MODEL = {
    "backbone": "mobilenetv2_100",
    "backbone_args": {},
    "classes": ["ants", "bees"],
    "image_size": 128,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "resize": "squash",
}


def epoch(number: int, reached: float) -> Epoch:
    value = 0.5 + (reached - 0.5) * (1 - 0.4**number)
    return Epoch(
        epoch=number,
        train_loss=1 - value,
        train_accuracy=value - 0.05,
        val_loss=1.1 - value,
        val_accuracy=value,
        learning_rate=1e-3 * (1 - number / 8),
        gradient_norm=2.0 / number,
        seconds=3.0,
        images_per_second=65.0,
        cpu_percent=90.0 + number,
        memory_mb=500.0 + 5 * number,
    )


def add(store: Store, name: str, strategy: str, status: Status, epochs: int, reached: float) -> None:
    phase: Phase = "final" if "-" in name else "search"
    recipe = {
        "data": "77aa",
        "classes": 2,
        "image_size": 128,
        "backbone": "mobilenetv2_100",
        "backbone_args": {},
        "weights": "9f3c",
        "strategy": {"name": strategy},
        "clip_norm": None,
        "optimizer": {"name": "adam"},
        "learning_rate": 1e-3,
        "epochs": 6,
        "seed": int(name[-1]),
    }
    store.add_trial(Trial(name, phase, {}, recipe))
    trained = tuple(epoch(number, reached) for number in range(1, epochs + 1))
    for one in trained:
        store.add_epoch(name, one)
    error = "the loss is NaN at step 7" if status == "failed" else None
    store.add_record(
        Record(name, phase, "k", "i", recipe, status, trained, 2_226_434, 2_562, 3.0 * epochs, error=error)
    )
    if phase == "final":
        store.add_test(name, Evaluation("test", 0.3, tuple(range(100)), tuple(index < 93 for index in range(100))))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep with its winner's model, mirrored."""
    folder = tmp_path_factory.mktemp("ui") / "my runs"
    store = Store(folder / NAME)
    store.put_plan(PLAN)
    for trial in TRIALS:
        add(store, *trial)
    store.decide("finals", {"finalists": ["0001"]})
    store.decide("openings", {"ranking": ["0001"]})
    exported = folder / "exported"
    exported.mkdir()
    (exported / "model.json").write_text(json.dumps(MODEL))
    (exported / "model.safetensors").write_bytes(b"\0" * 64)
    mirror = Mirror(store, default_tracking_uri(folder))
    assert mirror.log_model("0001", exported, {"val_accuracy": 0.94, "test_accuracy": 0.93})
    return folder


@pytest.fixture(scope="module")
def front_page(storage: Path) -> Iterator[str]:
    """The page that `serve_ui` prints; the server is stopped with Ctrl-C."""
    process = start(storage, free_port())
    try:
        yield page_of(process)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def address(front_page: str) -> str:
    return front_page.partition("/#")[0]


def start(storage: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sweeps", "ui", NAME, "--storage", str(storage), "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def page_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+/#/\S+", line):
            return found[0]
    raise AssertionError(f"the UI ended with status {process.wait()}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert isinstance(port, int)
        return port


def answer(address: str, method: str = "GET", path: str = "/", **headers: str) -> int:
    """The status of a request with these headers, whatever they claim."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request(method, path, body="{}" if method == "POST" else None, headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


# --- before a server is started -----------------------------------------------------------------------------------


def test_a_storage_without_a_database_names_the_command_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve_ui(tmp_path / "none") == 2
    assert "make quickstart" in capsys.readouterr().err
    Store(tmp_path / "one").put_plan({})
    assert serve_ui(tmp_path) == 2
    assert f"python -m sweeps sync one --storage {tmp_path}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


def test_a_tracking_server_has_a_ui_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_ui(tmp_path, "https://me:hunter2@tracking.example") == 0
    out = capsys.readouterr().out
    assert "https://tracking.example" in out
    assert "hunter2" not in out


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("host", ["evil.example", "10.evil.example", "192.168.1.7:5000", "127.0.0.1.evil.example"])
def test_a_foreign_host_header_is_refused(address: str, host: str) -> None:
    assert answer(address) == 200
    for path in ("/", "/ajax-api/2.0/mlflow/experiments/get?experiment_id=0", "/get-artifact?path=x&run_uuid=y"):
        assert answer(address, path=path, Host=host) == 403


@pytest.mark.slow
def test_a_foreign_origin_may_change_nothing(address: str) -> None:
    path, kind = "/api/2.0/mlflow/experiments/create", {"Content-Type": "application/json"}
    assert answer(address, "POST", path, Origin="https://evil.example", **kind) == 403
    assert answer(address, "POST", path, Origin="null", **kind) == 403


@pytest.mark.slow
def test_only_this_machine_can_connect(address: str) -> None:
    port = int(address.rpartition(":")[2])
    others = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
    for other in others - {"127.0.0.1"}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((other, port), timeout=5)


@pytest.mark.slow
def test_a_taken_port_gives_way_to_the_next_and_sigterm_ends_the_server(storage: Path, address: str) -> None:
    taken = int(address.rpartition(":")[2])
    process = start(storage, taken)
    other = page_of(process).partition("/#")[0]
    assert int(other.rpartition(":")[2]) > taken
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with pytest.raises(ConnectionRefusedError):
        answer(other)


# --- what is seen -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(30_000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def runs(storage: Path) -> dict[str, str]:
    """Run ids by trial, the sweep's own under ''; the experiment's under 'experiment', the model's under 'model'."""
    from sweeps.engine.tracking import connect_mlflow

    client = connect_mlflow(default_tracking_uri(storage))
    experiment = client.get_experiment_by_name("folder")
    assert experiment is not None
    ids = {
        run.data.tags.get("xfer.trial", ""): run.info.run_id for run in client.search_runs([experiment.experiment_id])
    }
    [model] = client.search_logged_models([experiment.experiment_id])
    return ids | {"experiment": experiment.experiment_id, "model": model.model_id}


def look(page: Page, picture: Path, *texts: str) -> None:
    """Wait for the texts that a page must show, and take its picture."""
    for text in texts:
        page.get_by_text(text).first.wait_for(state="visible")
    time.sleep(1)  # until the charts are drawn
    page.screenshot(path=picture)


def headings(page: Page) -> list[str]:
    """The headings of the columns that are visible without scrolling, from left to right."""
    cells = page.locator(".ag-header-viewport .ag-header-cell").all()
    placed = [((cell.bounding_box() or {"x": 0.0})["x"], cell.inner_text()) for cell in cells]
    return [text for _, text in sorted(placed)]


def table(page: Page) -> list[tuple[str, str, float, str]]:
    """Name, strategy, validation accuracy and status of each run of the table, from top to bottom."""

    def column(name: str) -> list[str]:
        cells = page.locator(f'.ag-row .ag-cell[col-id="{name}"]').all()
        return [
            text for _, text in sorted(((cell.bounding_box() or {"y": 0.0})["y"], cell.inner_text()) for cell in cells)
        ]

    names = [text.splitlines()[-1] for text in column("attributes.`Run Name`")]  # before it: the colour of its curves
    accuracies = [round(float(text), 3) for text in column("metrics.`val_accuracy`")]
    return list(zip(names, column("params.`strategy`"), accuracies, column("tags.`xfer.status`"), strict=True))


@pytest.mark.slow
def test_a_browser_sees_the_sweep_its_trials_curves_and_model(
    page: Page, front_page: str, runs: dict[str, str], tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    here = f"{front_page.partition('/#')[0]}/#/experiments/{runs['experiment']}"
    trial, as_training = f"{here}/runs/{runs['0001']}", "?workflowType=machine_learning"

    page.goto(front_page)
    look(page, pictures / "trials.png", "0001-s2 freeze_then_unfreeze")
    assert table(page) == BEST_FIRST
    assert headings(page)[: len(COLUMNS)] == COLUMNS
    assert page.get_by_text("Prompts").count() == 0  # the face for language models
    page.goto(f"{here}/runs/{runs['']}{as_training}")
    look(page, pictures / "sweep.png", NAME, "Finished", "xfer.winner", "best_val_accuracy", "space.learning_rate")
    page.goto(f"{here}/runs/{runs['']}/model-metrics{as_training}")
    look(page, pictures / "progress.png", "best_val_accuracy", "trials_finished")
    page.goto(f"{trial}{as_training}")
    look(page, pictures / "trial.png", "0001 freeze_then_unfreeze", NAME, "xfer.phase")
    page.goto(f"{trial}/model-metrics{as_training}")
    page.get_by_placeholder("Search metric charts").fill("val_")
    look(page, pictures / "curves.png", "val_accuracy", "val_loss")
    page.goto(f"{trial}/system-metrics{as_training}")
    look(page, pictures / "system.png", "cpu_percent", "memory_mb")
    page.goto(f"{here}/models{as_training}")
    look(page, pictures / "models.png", NAME, "Ready")
    page.goto(f"{here}/models/{runs['model']}{as_training}")
    look(page, pictures / "model.png", "The winner: trial 0001", "Preprocessing", "squash")
    page.goto(f"{here}/models/{runs['model']}/artifacts{as_training}")
    look(page, pictures / "artifacts.png", "MLmodel", "README.md")
    assert page.title() != "owned"
