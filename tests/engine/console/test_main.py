"""python -m sweeps list | status | report, on a sweep made by hand, and what stands between store and report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import __main__ as program
from sweeps.engine.console.reports import load_results, render_report
from sweeps.engine.storage.lease import Lease
from sweeps.engine.storage.store import Store, Trial
from tests.engine.conftest import a_plan, a_recipe, a_record, an_epoch, an_evaluation

NAME = "folder-hymenoptera_of_last_summer-3fa2c1"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """One sweep that has come to its end, but for one trial that was interrupted."""
    store = Store(tmp_path / "runs" / NAME)
    store.put_plan(a_plan(name=NAME))
    ended = [
        a_record("0000", recipe=a_recipe("clip")),
        a_record("0001", (0.2, 0.3), "pruned", recipe=a_recipe("scratch")),
        a_record("0002", (), "failed", error="the loss is nan at step 3", recipe=a_recipe("linear_probe")),
        a_record("0000-s1", (0.5, 0.7), recipe=a_recipe("clip", seed=1)),
        a_record("0000-s2", (0.5, 0.9), recipe=a_recipe("clip", seed=2)),
    ]
    for record in ended:
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
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_results_are_all_that_the_sweep_left_behind(storage: Path) -> None:
    results = load_results(Store(storage / NAME))
    assert [record.trial for record in results.records] == ["0000", "0000-s1", "0000-s2", "0001", "0002"]
    assert results.unfinished == ["0003"]
    assert [opening["finalists"] for opening in results.openings] == [["0000"]]
    assert [record.test is not None for record in results.records] == [False, True, True, False, False]
    assert results.plan["name"] == NAME


def test_results_of_no_sweep_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no sweep in .*nothing"):
        load_results(Store(tmp_path / "nothing"))


def test_list_says_what_ran_and_how_far_it_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    Store(storage / "begun").put_plan(a_plan(name="begun"))
    assert sweeps(monkeypatch, "list", "--storage", str(storage)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["sweep", "trials", "finals"]
    assert [NAME, "3/4", "2", "80.0%"] in [line[:4] for line in lines]
    assert ["begun", "0/4", "0", "-"] in [line[:4] for line in lines]


def test_list_gives_each_sweep_one_line_however_it_is_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "[red]" + "x" * 80
    Store(tmp_path / name).put_plan(a_plan(name=name))
    sweeps(monkeypatch, "list", "--storage", str(tmp_path))
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert name in lines[0]


def test_list_of_nothing_says_how_to_begin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sweeps(monkeypatch, "list", "--storage", str(tmp_path / "none")) == 0
    assert "python -m sweeps.quickstart" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("by", ["name", "folder", "relative folder"])
def test_status_says_how_far_a_sweep_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, by: str
) -> None:
    monkeypatch.chdir(storage)
    run = {"name": NAME, "folder": str(storage / NAME), "relative folder": f"../runs/{NAME}"}[by]
    storage_flag = ("--storage", str(storage)) if by == "name" else ()
    assert sweeps(monkeypatch, "status", run, *storage_flag) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{NAME}: Which way of adapting a pretrained network serves these images best?"
    assert lines[1:5] == [
        "  search  3 of 4 runs: 1 failed, 1 finished, 1 pruned",
        "  final   2 of 2 runs: 2 finished",
        "  0003    1 of 4 epochs",
        "  driver  none",
    ]
    assert lines[5].startswith("Best is clip on test_efficientnet with adam at learning rate 0.001 (trial 0000): 70.0%")


def test_status_says_what_it_has_cost_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    Store(storage / NAME).put_spending(None, [{"node_type": "l4", "usd_per_hour": 0.35, "seconds": 36_000.0}])
    assert sweeps(monkeypatch, "status", NAME, "--storage", str(storage)) == 0
    assert "  cost    $3.50 for 10 h 0 min of l4 at $0.35 an hour" in capsys.readouterr().out.splitlines()


def test_status_says_who_is_at_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    with Lease(storage / NAME):
        assert sweeps(monkeypatch, "status", NAME, "--storage", str(storage)) == 0
    assert f"  driver  process {os.getpid()} on " in capsys.readouterr().out


def test_report_renders_again_and_says_where(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, tmp_path: Path
) -> None:
    reports = tmp_path / "reports"
    assert sweeps(monkeypatch, "report", NAME, "--storage", str(storage), "--reports", str(reports)) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == reports / NAME / "report.html"
    assert {"report.html", "report.md", "ranking.csv"} <= {path.name for path in page.parent.iterdir()}
    assert "0000" in (page.parent / "ranking.csv").read_text()


def test_a_report_of_a_sweep_that_has_just_begun_renders_too(tmp_path: Path) -> None:
    store = Store(tmp_path / "begun")
    store.put_plan(a_plan(name="begun"))
    assert render_report(store, tmp_path / "reports").is_file()


@pytest.mark.parametrize("command", ["status", "report"])
def test_an_unknown_sweep_is_refused_with_the_nearest_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path, command: str
) -> None:
    assert sweeps(monkeypatch, command, NAME[:-2], "--storage", str(storage)) == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: unknown sweep {NAME[:-2]!r}: did you mean {NAME}? Known: {NAME}\n"
    assert shown.out == ""


@pytest.mark.parametrize("command", ["status", "report"])
def test_where_nothing_ran_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert sweeps(monkeypatch, command, "x", "--storage", str(tmp_path)) == 2
    assert "Known: none" in capsys.readouterr().err


def test_a_damaged_plan_is_refused_with_a_way_to_repair(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    (storage / NAME / "plan.json").write_text("{")
    assert sweeps(monkeypatch, "status", NAME, "--storage", str(storage)) == 2
    assert "Restore an undamaged copy, or start a new sweep with --fresh" in capsys.readouterr().err


def test_one_damaged_sweep_does_not_hide_the_others_from_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: Path
) -> None:
    Store(storage / "begun").put_plan(a_plan(name="begun"))
    (storage / "begun" / "plan.json").write_text("{")
    sweeps(monkeypatch, "list", "--storage", str(storage))
    assert NAME in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [(), ("lst",), ("status",), ("list", "--nope")], ids=str)
def test_what_cannot_be_read_has_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert sweeps(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err


def test_the_command_itself_needs_neither_torch_nor_ray(storage: Path) -> None:
    run = "import sys, json\nfrom sweeps.__main__ import main\ntry:\n main()\nexcept SystemExit as e: code = e.code\n"
    say = "print(json.dumps([code, sorted(n for n in ('torch', 'ray', 'optuna', 'mlflow') if n in sys.modules)]))"
    for arguments in (["list"], ["status", NAME]):
        command = [sys.executable, "-c", run + say, *arguments, "--storage", str(storage)]
        shown = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60)
        assert json.loads(shown.stdout.splitlines()[-1]) == [0, []]


def test_a_storage_that_cannot_be_reached_is_one_message(monkeypatch, capsys):
    from sweeps import __main__ as program
    from xfer.storage import object_store

    def away(storage):
        raise object_store.StorageUnavailableError("s3://bucket/runs could not be reached: PermissionError: denied")

    monkeypatch.setattr(program, "list_sweeps", away)
    monkeypatch.setattr("sys.argv", ["sweeps", "list"])
    with pytest.raises(SystemExit) as left:
        program.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: s3://bucket/runs could not be reached: PermissionError: denied\n"
