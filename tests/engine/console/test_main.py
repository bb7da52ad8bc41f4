"""python -m sweeps list | status | report on a synthetic sweep, and the way from a store to a report."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import __main__ as program
from sweeps.engine.console.log_redirect import redirect_output
from sweeps.engine.console.reports import load_results, render_report
from sweeps.engine.console.ui import serve_ui
from sweeps.engine.storage.lease import Lease
from sweeps.engine.storage.store import Store, Trial
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch, an_evaluation
from xfer.storage.object_store import StorageUnavailableError

NAME = "folder-hymenoptera_of_last_summer-3fa2c1"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A sweep that is finished except for one interrupted trial."""
    store = Store(tmp_path / "runs" / NAME)
    store.put_plan(a_plan(name=NAME))
    records = [
        a_record("0000", recipe=a_recipe("clip")),
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


def test_list_shows_each_sweep_and_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    Store(storage / "started").put_plan(a_plan(name="started"))
    assert sweeps(monkeypatch, "list", "--storage", str(storage)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["sweep", "trials", "finals"]
    assert [NAME, "3/4", "2", "80.0%"] in [line[:4] for line in lines]
    assert ["started", "0/4", "0", "-"] in [line[:4] for line in lines]


def test_list_gives_each_sweep_one_line_whatever_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "[red]" + "x" * 80
    Store(tmp_path / name).put_plan(a_plan(name=name))
    sweeps(monkeypatch, "list", "--storage", str(tmp_path))
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert name in lines[0]


def test_list_of_an_empty_storage_says_how_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sweeps(monkeypatch, "list", "--storage", str(tmp_path / "none")) == 0
    assert "python -m sweeps.quickstart" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


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
        "Best is clip on test_efficientnet with adam at learning rate 0.001 (trial 0000): test accuracy 70.0%"
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
    assert f"  driver  process {os.getpid()} on " in capsys.readouterr().out


def test_report_renders_again_and_prints_the_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, tmp_path: Path
) -> None:
    reports = tmp_path / "reports"
    assert sweeps(monkeypatch, "report", NAME, "--storage", str(storage), "--reports", str(reports)) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == reports / NAME / "report.html"
    assert {"report.html", "report.md", "ranking.csv"} <= {path.name for path in page.parent.iterdir()}
    assert "0000" in (page.parent / "ranking.csv").read_text()


def test_a_sweep_that_has_just_started_has_a_report(tmp_path: Path) -> None:
    store = Store(tmp_path / "started")
    store.put_plan(a_plan(name="started"))
    assert render_report(store, tmp_path / "reports").is_file()


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
    sweeps(monkeypatch, "list", "--storage", str(storage))
    assert NAME in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("lst",), ("status",), ("list", "--nope")], ids=str)
def test_a_wrong_command_line_has_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert sweeps(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err


def test_list_and_status_import_neither_torch_nor_ray(storage: Path) -> None:
    run = "import sys, json\nfrom sweeps.__main__ import main\ntry:\n main()\nexcept SystemExit as e: code = e.code\n"
    show = "print(json.dumps([code, sorted(n for n in ('torch', 'ray', 'optuna', 'mlflow') if n in sys.modules)]))"
    for arguments in (["list"], ["status", NAME]):
        command = [sys.executable, "-c", run + show, *arguments, "--storage", str(storage)]
        shown = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60)
        assert json.loads(shown.stdout.splitlines()[-1]) == [0, []]


def test_an_unavailable_storage_is_reported_in_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "s3://bucket/runs could not be reached: PermissionError: denied"

    def unavailable(storage: Path) -> list[Store]:
        raise StorageUnavailableError(message)

    monkeypatch.setattr(program, "list_sweeps", unavailable)
    assert sweeps(monkeypatch, "list") == 2
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
