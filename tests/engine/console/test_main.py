"""python -m sweeps status | report on a synthetic sweep, and the way from a store to a report."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps import __main__ as program
from sweeps.engine.console import overview
from sweeps.engine.console.log_redirect import redirect_output
from sweeps.engine.console.reports import load_evidence, load_results, render_report
from sweeps.engine.console.ui import serve_ui
from sweeps.engine.storage.lease import Lease
from sweeps.engine.storage.store import Store, Trial
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch, an_evaluation
from xfer.data.pack import Pack
from xfer.measure.held_out import HeldOutRun, predict_held_out
from xfer.records import Record
from xfer.storage.object_store import StorageUnavailableError

ROOT = Path(__file__).parents[3]
NAME = "folder-hymenoptera_of_last_summer-3fa2c1"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A sweep that is finished except for one interrupted trial."""
    store = Store(tmp_path / "runs" / NAME)
    store.put_plan(a_plan(name=NAME))
    records = [
        a_record("0000", (0.5, 0.95), recipe=a_recipe("clip")),
        a_record("0001", (0.2, 0.3), "pruned", recipe=a_recipe("scratch")),
        a_record("0002", (), "failed", error="the loss is nan at step 3", recipe=a_recipe("linear_probe")),
        a_record("0000-s1", (0.5, 0.7), recipe=a_recipe("clip", seed=1)),
        a_record("0000-s2", (0.5, 0.9), recipe=a_recipe("clip", seed=2)),
    ]
    for record in records:
        store.add_trial(Trial(record.trial, record.phase, {}, record.recipe))
        for epoch in record.epochs:
            store.add_epoch(record.trial, epoch)
        store.add_record(record)
    store.add_trial(Trial("0003", "search", {}, a_recipe()))
    store.add_epoch("0003", an_epoch(1, 0.4))
    store.decide("finals", {"at": "2026-03-01T11:00:00+00:00", "finalists": ["0000"], "seeds": 2})
    store.decide("openings", {"at": "2026-03-01T12:00:00+00:00", "finalists": ["0000"]})
    for name, correct in (("0000-s1", 6), ("0000-s2", 8)):
        store.add_test(name, an_evaluation("test", correct))
    return tmp_path / "runs"


def sweeps(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sweeps", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        program.main()
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_results_contain_everything_that_the_sweep_stored(storage: Path) -> None:
    results = load_results(Store(storage / NAME))
    assert [record.trial for record in results.records] == ["0000", "0000-s1", "0000-s2", "0001", "0002"]
    assert results.unfinished == ["0003"]
    assert [opening["finalists"] for opening in results.openings] == [["0000"]]
    assert [record.test is not None for record in results.records] == [False, True, True, False, False]
    assert results.plan["name"] == NAME


def test_loading_results_from_a_folder_without_a_sweep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no sweep in .*nothing"):
        load_results(Store(tmp_path / "nothing"))


# --- what there is -------------------------------------------------------------------------------------------------


def add_sweep(storage: Path, name: str, *records: Record, **changes: Any) -> Store:
    """A sweep with these records, of one planned trial and no finals unless the plan says otherwise."""
    store = Store(storage / name)
    store.put_plan(a_plan(**{"name": name, "trials": 1, "finalists": 0, **changes}))
    for record in records:
        store.add_trial(Trial(record.trial, record.phase, {}, record.recipe))
        store.add_record(record)
    return store


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each sweep in the table of `sweeps status`."""
    table, _, _ = text.partition("\n\n")
    lines = [re.split(r"  +", line.strip()) for line in table.splitlines()]
    assert lines[0] == ["sweep", "state", "trials", "best on validation", "data", "last activity"]
    return {name: cells for name, *cells in lines[1:]}


@pytest.mark.parametrize("command", ["status", "list"])
def test_status_alone_lists_each_sweep_with_its_state_and_the_command_that_continues_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    add_sweep(storage, "done", a_record("0000"))
    add_sweep(storage, "failed", a_record("0000", (), "failed", error="no memory"))
    add_sweep(
        storage, "started", provenance={**a_plan()["provenance"], "command": "python -m sweeps.folder --data ants"}
    )
    running = add_sweep(storage, "running", a_record("0000", (0.5,) * 4), trials=9, objective=["loss"])
    with Lease(running.folder):
        assert sweeps(monkeypatch, command, "--storage", str(storage)) == 0
    out = capsys.readouterr().out
    about = ["colours, 36 images", "just now"]
    assert rows(out) == {
        NAME: ["interrupted", "3/4", "80.0%", *about],
        "done": ["done", "1/1", "80.0%", *about],
        "failed": ["failed", "1/1", "\N{EN DASH}", *about],
        "started": ["interrupted", "0/1", "\N{EN DASH}", *about],
        "running": ["running", "1/9", "cross-entropy 0.8", *about],
    }
    assert out.splitlines()[-3].startswith(f"sweeps status NAME --storage {storage}    ")
    assert sorted(out.splitlines()[-2:]) == [
        "python -m sweeps.folder --data ants    continues started",
        f"python -m sweeps.folder --data colours    continues {NAME}",
    ]


def test_a_sweep_is_done_once_its_finalists_have_been_tested(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def state() -> str:
        capsys.readouterr()
        sweeps(monkeypatch, "status", "--storage", str(tmp_path))
        return rows(capsys.readouterr().out)["one"][0]

    store = add_sweep(tmp_path, "one", a_record("0000"), a_record("0000-s1"), finalists=1, seeds=1)
    assert state() == "interrupted"
    store.decide("openings", {"finalists": ["0000"]})
    assert state() == "interrupted"
    store.add_test("0000-s1", an_evaluation("test", 8))
    assert state() == "done"
    store.put_plan(a_plan(name="one", trials=2, finalists=1, seeds=1))
    assert state() == "interrupted"  # more trials were asked for


def test_the_sweep_with_the_latest_activity_comes_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, hours in (("a", 3), ("b", 1), ("c", 50)):
        store = add_sweep(tmp_path, name, a_record("0000"))
        for path in store.folder.rglob("*.json"):
            os.utime(path, (time.time() - 3600 * hours - 60,) * 2)
    sweeps(monkeypatch, "status", "--storage", str(tmp_path))
    assert [(name, cells[-1]) for name, cells in rows(capsys.readouterr().out).items()] == [
        ("b", "1 h ago"),
        ("a", "3 h ago"),
        ("c", "2 days ago"),
    ]


def test_an_epoch_of_a_trial_that_was_interrupted_is_activity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = add_sweep(tmp_path, "one")
    store.add_trial(Trial("0000", "search", {}, a_recipe()))
    for number, hours in ((1, 5), (2, 3)):
        store.add_epoch("0000", an_epoch(number, 0.4))
        os.utime(store.trial_folder("0000") / "epochs" / f"{number:04d}.json", (time.time() - 3600 * hours - 60,) * 2)
    for path in (store.folder / "plan.json", store.trial_folder("0000") / "config.json"):
        os.utime(path, (time.time() - 36_000,) * 2)
    sweeps(monkeypatch, "status", "--storage", str(tmp_path))
    assert rows(capsys.readouterr().out)["one"][-1] == "3 h ago"


def test_status_gives_each_sweep_one_line_whatever_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "[red]" + "x" * 80
    add_sweep(tmp_path, name, a_record("0000"))
    sweeps(monkeypatch, "status", "--storage", str(tmp_path))
    assert list(rows(capsys.readouterr().out)) == [name]


@pytest.mark.parametrize("command", ["status", "list"])
def test_status_of_an_empty_storage_says_how_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert sweeps(monkeypatch, command, "--storage", str(tmp_path / "none")) == 0
    out = capsys.readouterr().out
    assert "    sweeps quickstart " in out
    assert "    sweeps folder --data DIR " in out
    assert not (tmp_path / "none").exists()


def test_status_lists_the_default_storage_of_the_environment(tmp_path: Path) -> None:
    add_sweep(tmp_path / "elsewhere", "mine", a_record("0000"))
    done = run_program(["status"], XFER_STORAGE=str(tmp_path / "elsewhere"))
    assert list(rows(done.stdout)) == ["mine"]


def run_program(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweeps", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


# --- one sweep -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["name", "folder", "relative folder"])
def test_status_shows_the_progress_of_a_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, by: str
) -> None:
    monkeypatch.chdir(storage)
    run = {"name": NAME, "folder": str(storage / NAME), "relative folder": f"../runs/{NAME}"}[by]
    storage_flag = ("--storage", str(storage)) if by == "name" else ()
    assert sweeps(monkeypatch, "status", run, *storage_flag) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{NAME}: Which way of adapting a pretrained network serves these images best?"
    assert lines[1:5] == [
        "  search  3 of 4 runs: 1 failed, 1 finished, 1 stopped early",
        "  final   2 of 2 runs: 2 finished",
        "  0003    1 of 4 epochs",
        "  driver  none",
    ]
    assert lines[5].startswith(
        "Best is clip (full fine-tuning, gradients clipped) on test_efficientnet with adam at learning rate 0.001 "
        "(trial 0000): test accuracy 70.0%"
    )


def test_status_shows_the_cost_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    Store(storage / NAME).put_spending(None, [{"node_type": "l4", "usd_per_hour": 0.35, "seconds": 36_000.0}])
    assert sweeps(monkeypatch, "status", NAME, "--storage", str(storage)) == 0
    assert "  cost    $3.50 for 10 h 0 min of l4 at $0.35 an hour" in capsys.readouterr().out.splitlines()


def test_status_shows_the_process_that_runs_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    with Lease(storage / NAME):
        assert sweeps(monkeypatch, "status", NAME, "--storage", str(storage)) == 0
    out = capsys.readouterr().out
    assert f"  driver  process {os.getpid()} on " in out
    assert "  left    search 5 s · noise about 10 s · 15 s left" in out.splitlines()


def test_status_of_a_sweep_that_does_not_run_shows_no_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    assert sweeps(monkeypatch, "status", NAME, "--storage", str(storage)) == 0
    assert "  left " not in capsys.readouterr().out


def test_report_renders_again_and_prints_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, tmp_path: Path
) -> None:
    reports = tmp_path / "reports"
    assert sweeps(monkeypatch, "report", NAME, "--storage", str(storage), "--reports", str(reports)) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == reports / NAME / "report.html"
    assert {"report.html", "report.md", "ranking.csv"} <= {path.name for path in page.parent.iterdir()}
    assert "0000" in (page.parent / "ranking.csv").read_text()


def test_a_report_of_a_running_sweep_is_a_snapshot_and_leaves_the_sweep_as_it_is(
    monkeypatch: pytest.MonkeyPatch, storage: Path, tmp_path: Path
) -> None:
    reports = tmp_path / "reports"
    for path in storage.rglob("openings*"):  # as it is before the test set is opened
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Lease(storage / NAME, renew_seconds=3600.0):  # no renewal between the two readings
        before = contents(storage)
        assert sweeps(monkeypatch, "report", NAME, "--storage", str(storage), "--reports", str(reports)) == 0
        assert contents(storage) == before
    expected = (
        "A snapshot of a sweep that has not ended: 3 of 4 search runs and 2 final runs have ended, "
        "the test set has not been opened."
    )
    assert expected in (reports / NAME / "report.md").read_text()
    assert expected in (reports / NAME / "report.html").read_text()


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, lease included."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_shows_what_is_stored_and_says_what_is_missing(storage: Path, tmp_path: Path, pack: Pack) -> None:
    store = Store(storage / NAME)
    assert load_evidence(store).why_no_pack == "the prepared data of this sweep are not on this machine"
    store.put_plan({**a_plan(name=NAME), "data": {**a_plan()["data"], "pack": pack.hash}})
    shutil.copytree(pack.folder, storage / "packs" / pack.hash[:16])
    images = np.arange(3)
    part = predict_held_out(np.eye(3), images, images, None)
    store.add_held_out("0000-s1", HeldOutRun(None, part, part))
    store.add_held_out("0000-s2", HeldOutRun(None, part, part))
    (store.trial_folder("0000-s2") / "predictions.json").write_text("{")
    evidence = load_evidence(store)
    assert [*evidence.held_out] == ["0000-s1"]
    assert evidence.pack is not None
    assert evidence.pack.hash == pack.hash
    (storage / "packs" / pack.hash[:16] / "pack.json").write_text("{")
    assert load_evidence(store).why_no_pack.startswith("the prepared data of this sweep cannot be read")
    assert render_report(store, tmp_path / "reports").is_file()


def test_importances_come_from_the_finished_trials_of_the_search(tmp_path: Path) -> None:
    store = Store(tmp_path / "many")
    store.put_plan(a_plan(name="many"))
    for number in range(12):
        record = a_record(f"{number:04d}", (0.5, number / 12), "finished" if number else "pruned")
        store.add_trial(Trial(record.trial, "search", {"batch_size": 16 * (1 + number % 2)}, record.recipe))
        store.add_record(record)
    importances = load_evidence(store).importances
    assert importances is not None
    assert (importances.finished, [one.choice for one in importances.choices]) == (11, ["batch_size"])
    assert render_report(store, tmp_path / "reports").is_file()


def test_a_sweep_that_has_just_started_has_a_report(tmp_path: Path) -> None:
    store = Store(tmp_path / "started")
    store.put_plan(a_plan(name="started"))
    assert render_report(store, tmp_path / "reports").is_file()


def test_without_a_name_the_latest_sweep_is_taken_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, tmp_path: Path
) -> None:
    flags = ("--storage", str(storage), "--reports", str(tmp_path / "reports"))
    assert sweeps(monkeypatch, "report", *flags) == 0
    shown = capsys.readouterr()
    assert shown.err == f"{NAME}: the only sweep in {storage}\n"
    assert shown.out == f"{tmp_path / 'reports' / NAME / 'report.html'}\n"
    add_sweep(storage, "newer", a_record("0000"))
    assert sweeps(monkeypatch, "report", *flags) == 0
    shown = capsys.readouterr()
    assert shown.err == f"newer: the latest of 2 sweeps in {storage}\n"
    assert shown.out == f"{tmp_path / 'reports' / 'newer' / 'report.html'}\n"


@pytest.mark.parametrize("command", ["report", "sync"])
def test_without_a_name_an_empty_storage_is_an_error_that_says_how_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert sweeps(monkeypatch, command, "--storage", str(tmp_path)) == 2
    assert capsys.readouterr().err == (
        f"error: there are no sweeps in {tmp_path} yet: start one, for example with sweeps quickstart\n"
    )


@pytest.mark.parametrize("command", ["status", "report"])
def test_an_unknown_sweep_is_an_error_that_suggests_similar_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, command: str
) -> None:
    assert sweeps(monkeypatch, command, NAME[:-2], "--storage", str(storage)) == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: unknown sweep {NAME[:-2]!r}: did you mean {NAME}? Known: {NAME}\n"
    assert shown.out == ""


@pytest.mark.parametrize("command", ["status", "report"])
def test_an_empty_storage_has_no_known_sweeps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert sweeps(monkeypatch, command, "x", "--storage", str(tmp_path)) == 2
    assert "Known: none" in capsys.readouterr().err


def test_a_damaged_plan_is_an_error_that_says_how_to_repair_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    (storage / NAME / "plan.json").write_text("{")
    assert sweeps(monkeypatch, "status", NAME, "--storage", str(storage)) == 2
    err = capsys.readouterr().err
    assert "plan.json cannot be read" in err
    assert "--fresh" in err


def test_one_damaged_sweep_does_not_hide_the_others_from_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    Store(storage / "started").put_plan(a_plan(name="started"))
    (storage / "started" / "plan.json").write_text("{")
    sweeps(monkeypatch, "status", "--storage", str(storage))
    shown = capsys.readouterr()
    assert list(rows(shown.out)) == [NAME]
    assert "plan.json cannot be read" in shown.err


# --- commands ------------------------------------------------------------------------------------------------------


def test_the_program_alone_explains_its_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweeps(monkeypatch) == 0
    out = capsys.readouterr().out
    commands = {line.split("sweeps ")[1].split()[0] for line in out.splitlines() if line.startswith("    sweeps ")}
    assert commands == {*program.experiments(), "status", "report", "compare", "reproduce", "ui", "sync"}
    assert "sweeps folder --data DIR" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_a_command_that_does_not_exist_is_an_error_that_suggests_the_closest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweeps(monkeypatch, "statsu") == 2
    assert capsys.readouterr().err.startswith("error: unknown command 'statsu': did you mean status?")


def test_every_command_has_a_help_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in program.COMMANDS:
        assert sweeps(monkeypatch, command, "--help") == 0
        assert "--storage" in capsys.readouterr().out


def test_an_experiment_page_is_a_command() -> None:
    done = run_program(["folder"])
    assert done.stderr.startswith("error: which images? ")
    assert done.returncode == 2


def test_the_programs_are_console_commands() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    loaded = {name: EntryPoint(name, value, "console_scripts").load() for name, value in scripts.items()}
    from xfer.__main__ import main as xfer_main

    assert loaded == {"sweeps": program.main, "xfer": xfer_main}


@pytest.mark.parametrize("arguments", [("lst",), ("list", "--nope")], ids=str)
def test_a_wrong_command_line_has_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert sweeps(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err


def test_list_and_status_import_neither_torch_nor_ray(storage: Path) -> None:
    run = "import sys, json\nfrom sweeps.__main__ import main\ntry:\n main()\nexcept SystemExit as e: code = e.code\n"
    show = "print(json.dumps([code, sorted(n for n in ('torch', 'ray', 'optuna', 'mlflow') if n in sys.modules)]))"
    for arguments in (["list"], ["status"], ["status", NAME]):
        command = [sys.executable, "-c", run + show, *arguments, "--storage", str(storage)]
        shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert json.loads(shown.stdout.splitlines()[-1]) == [0, []]


def test_an_unavailable_storage_is_reported_in_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "s3://bucket/runs could not be reached: PermissionError: denied"

    def unavailable(storage: Path) -> list[Store]:
        raise StorageUnavailableError(message)

    monkeypatch.setattr(overview, "list_sweeps", unavailable)
    assert sweeps(monkeypatch, "status") == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_output_goes_to_the_log_file_and_the_console_stays_on_the_original_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "driver.log"
    with redirect_output(path) as console:
        os.write(1, b"from C++\n")
        subprocess.run(["echo", "from a child"], check=True)
        logging.getLogger("library").info("from a logger")
        console.print("for the user")
    assert capfd.readouterr().out == "for the user\n"
    text = path.read_text()
    assert all(line in text for line in ("from C++", "from a child", "INFO library: from a logger"))
    assert "for the user" not in text


@pytest.mark.parametrize("port", [-1, 0, 65536])
def test_a_number_that_is_no_port_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], port: int) -> None:
    database = tmp_path / "mlflow.db"
    database.touch()
    assert serve_ui(tmp_path, f"sqlite:///{database}", port) == 2
    assert capsys.readouterr().err == f"--port {port}: must be between 1 and 65535\n"
