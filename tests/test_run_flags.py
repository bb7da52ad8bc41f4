"""Flags that change how a sweep runs: smoke, fresh, budgets, objectives; and sweeps that cannot run.

Two sweeps serve most of these tests; each is started once or several times by a fixture.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.sweep_commands import CompletedCommand, SweepFolder, nonempty_lines, only_sweep, run

pytestmark = pytest.mark.slow


@pytest.fixture
def valid_flags(image_folder: Path, weights: Path) -> list[object]:
    return _valid_flags(image_folder, weights)


def _valid_flags(image_folder: Path, weights: Path) -> list[object]:
    """Flags of a tiny sweep that is accepted."""
    return ["--data", image_folder, "--backbone", "test_efficientnet", "--weights", weights, "--image-size", 32]


@pytest.mark.nightly
def test_a_sweep_in_which_every_trial_fails_exits_with_status_1_and_prints_the_reasons(
    valid_flags: list[object], tmp_path: Path
) -> None:
    # Each step multiplies the weights by about -1000.
    explode = ("optimizer=sgd", "learning_rate=100", "weight_decay=10", "batch_size=2")
    flags = [*valid_flags, "--strategies", "naive", *(word for axis in explode for word in ("--fix", axis))]
    folders = ["--storage", tmp_path / "runs", "--reports", tmp_path / "reports"]
    completed = run("folder", [*flags, "--trials", 2, "--epochs", 2, *folders], tmp_path)
    assert completed.status == 1, completed.out + completed.err
    assert completed.err == ""
    lines = list(nonempty_lines(completed.out))
    assert lines[lines.index("no trial finished:") + 1].startswith("  DivergedError: the ")
    sweep = only_sweep(tmp_path / "runs")
    assert [record["status"] for record in sweep.records().values()] == ["failed", "failed"]
    assert all("in epoch 1, step" in record["error"] for record in sweep.records().values())
    assert not (sweep.folder / "model").exists()
    assert "DivergedError" in (tmp_path / "reports" / sweep.folder.name / "report.md").read_text()


@pytest.mark.nightly
def test_more_cpus_per_trial_than_ray_has_are_refused(valid_flags: list[object], tmp_path: Path) -> None:
    folders = ["--storage", tmp_path / "runs", "--reports", tmp_path / "reports"]
    completed = run("folder", [*valid_flags, "--cpus-per-trial", 4000, *folders], tmp_path)
    assert completed.status == 2
    assert completed.err.startswith("error: --cpus-per-trial 4000, but Ray sees ")
    assert "Traceback" not in completed.err


def _ranking(folder: Path, sweep: SweepFolder) -> list[dict[str, Any]]:
    with (folder / "reports" / sweep.folder.name / "ranking.csv").open() as file:
        return list(csv.DictReader(file))


# --- smoke, fresh and two objectives: one sweep ---


STORAGE = "runs #1, 50%25 of 蜜蜂?"
"""Name of the storage folder, with characters that are special in a URI."""


@pytest.fixture(scope="module")
def smoke(image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedCommand]:
    """The folder of a smoke run for two objectives, next to an old sweep of the same name, and how it ended."""
    folder = tmp_path_factory.mktemp("smoke")
    old = folder / STORAGE / "mine"
    (old / "trials").mkdir(parents=True)
    (old / "plan.json").write_text("{}")
    flags = [*_valid_flags(image_folder, weights), "--image-size", 128, "--smoke", "--fresh", "--name", "mine"]
    flags += ["--objective", "noisy_accuracy,seconds", "--strategies", "naive,linear_probe", "--scheduler", "none"]
    completed = run("folder", [*flags, "--storage", folder / STORAGE, "--reports", folder / "reports"], folder)
    assert completed.status == 0, completed.out + completed.err
    return folder, completed


def test_smoke_runs_every_stage_of_a_sweep_at_a_small_size(smoke: tuple[Path, CompletedCommand]) -> None:
    sweep = SweepFolder(smoke[0] / STORAGE / "mine-2")
    assert sweep.plan["image_size"] == 64
    assert sweep.trials("search") == ["0000", "0001"]
    assert len(sweep.trials("final")) == len(sweep.read("finals", "0001.json")["finalists"])
    assert {len(record["epochs"]) for record in sweep.records("final").values()} == {2}
    assert len(list(sweep.folder.glob("trials/*/test.json"))) == len(sweep.trials("final"))
    assert (sweep.folder / "model" / "model.safetensors").exists()
    assert (smoke[0] / "reports" / "mine-2" / "report.html").exists()


def test_mlflow_has_the_runs_and_the_model_of_a_storage_of_any_name(smoke: tuple[Path, CompletedCommand]) -> None:
    from sweeps.engine.tracking import connect_mlflow, default_tracking_uri

    assert "MLflow" not in smoke[1].out  # it has received everything
    client = connect_mlflow(default_tracking_uri(smoke[0] / STORAGE))
    experiment = client.get_experiment_by_name("folder")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert (
        len(runs)
        == len({run.info.run_name for run in runs})
        == 1 + len(SweepFolder(smoke[0] / STORAGE / "mine-2").trials())
    )
    [model] = client.search_logged_models([experiment.experiment_id])
    assert (smoke[0] / STORAGE / "mlartifacts" / "models" / model.model_id / "artifacts" / "MLmodel").exists()
    assert sorted(path.name for path in smoke[0].iterdir() if path.is_dir()) == ["reports", STORAGE]


def test_fresh_leaves_the_old_sweep_of_that_name_alone(smoke: tuple[Path, CompletedCommand]) -> None:
    old = smoke[0] / STORAGE / "mine"
    assert sorted(path.name for path in old.iterdir()) == ["plan.json", "trials"]
    assert (old / "plan.json").read_text() == "{}"


def test_a_sweep_for_accuracy_under_noise_and_seconds_selects_its_finalist_from_the_front(
    smoke: tuple[Path, CompletedCommand],
) -> None:
    sweep = SweepFolder(smoke[0] / STORAGE / "mine-2")
    epochs = [epoch for record in sweep.records().values() for epoch in record["epochs"]]
    assert all(0 <= epoch["val_noisy_accuracy"] <= 1 for epoch in epochs)
    searched = sweep.records("search")
    best = max(
        searched.items(),
        key=lambda item: (item[1]["epochs"][-1]["val_noisy_accuracy"], -item[1]["seconds"]),
    )[0]
    (head,) = [name for name in searched if searched[name]["recipe"]["strategy"]["name"] == "linear_probe"]
    assert sweep.read("finals", "0001.json")["finalists"] == list(dict.fromkeys((best, head)))
    best, *_ = sweep.read("openings", "0001.json")["finalists"]
    first, *_ = _ranking(smoke[0], sweep)
    final = sweep.read("trials", f"{best}-s1", "record.json")
    assert first["trial"] == best
    assert float(first["val_noisy_accuracy"]) == pytest.approx(final["epochs"][-1]["val_noisy_accuracy"])


# --- a time budget, a cost budget and the loss as objective: one sweep, started three times ---


@dataclass(frozen=True)
class Budgeted:
    """A sweep that a time budget ended, then a cost budget, and that then ran to its end."""

    folder: Path
    out_of_time: CompletedCommand
    records_then: dict[str, Any]
    out_of_money: CompletedCommand
    records_after: dict[str, Any]
    machines_then: tuple[Any, ...]
    """The first two objects under spending/, before the last start."""
    finished: CompletedCommand

    @property
    def sweep(self) -> SweepFolder:
        return only_sweep(self.folder / "runs")


@pytest.fixture(scope="module")
def budgeted(image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Budgeted:
    folder = tmp_path_factory.mktemp("budgeted")
    flags = [*_valid_flags(image_folder, weights), "--trials", 3, "--epochs", 2, "--finalists", 1, "--seeds", 1]
    flags += ["--strategies", "naive,scratch"]  # probes alone might finish before Ray has started
    flags += ["--scheduler", "none", "--objective", "loss"]
    flags += ["--prices", 10_000]  # $2.78 a second
    flags += ["--storage", folder / "runs", "--reports", folder / "reports"]

    def start(*budget: object) -> CompletedCommand:
        return run("folder", [*flags, *budget], folder)

    out_of_time = start("--time-budget", "1s")  # less than Ray takes to start
    sweep = only_sweep(folder / "runs")
    records_then = sweep.records()
    out_of_money = start("--cost-budget", 0.01)  # spent before Ray has started
    records_after = sweep.records()
    machines = tuple(sweep.read("spending", f"000{number}.json")["machines"] for number in (1, 2))
    finished = start("--cost-budget", 1_000_000)
    return Budgeted(folder, out_of_time, records_then, out_of_money, records_after, machines, finished)


@pytest.mark.nightly
def test_a_time_budget_stops_the_search_in_an_orderly_way(budgeted: Budgeted) -> None:
    completed = budgeted.out_of_time
    assert completed.status == 1, completed.out + completed.err
    assert completed.err == ""
    lines = list(nonempty_lines(completed.out))
    assert "time" in lines[lines.index("no trial finished:") + 1]
    assert lines[-1] == "next     the same command resumes where this one ended"
    assert budgeted.records_then == {}


@pytest.mark.nightly
def test_a_cost_budget_stops_the_search_in_an_orderly_way(budgeted: Budgeted) -> None:
    completed = budgeted.out_of_money
    assert completed.status == 1, completed.out + completed.err
    assert completed.err == ""
    lines = list(nonempty_lines(completed.out))
    assert "money" in lines[lines.index("no trial finished:") + 1]
    assert any(line.startswith("cost budget: $") and "of $0.01 spent. The search ends here" in line for line in lines)
    assert lines[-1] == "next     the same command with a larger --cost-budget resumes where this one ended"
    assert budgeted.records_after == {}


@pytest.mark.nightly
def test_the_same_command_without_the_time_budget_and_with_a_larger_cost_budget_finishes(budgeted: Budgeted) -> None:
    assert budgeted.finished.status == 0, budgeted.finished.out + budgeted.finished.err
    assert len(budgeted.sweep.records("search")) == 3


@pytest.mark.nightly
def test_the_cost_is_the_sum_over_all_starts_at_the_given_price(budgeted: Budgeted) -> None:
    sweep = budgeted.sweep
    assert sweep.plan["prices"] == {"this machine": {"usd_per_hour": 10_000.0, "from": "--prices"}}
    machines = [sweep.read("spending", f"000{number}.json")["machines"] for number in (1, 2, 3)]
    assert tuple(machines[:2]) == budgeted.machines_then
    assert [len(each) for each in machines] == [1, 1, 1]
    spent = sum(machine["seconds"] for each in machines for machine in each) / 3600 * 10_000
    [cost] = [line for line in nonempty_lines(budgeted.finished.out) if line.startswith("cost     ")]
    assert cost.startswith(f"cost     ${spent:,.2f} for ")
    assert cost.endswith(" of this machine at $10,000 an hour")
    report = budgeted.folder / "reports" / sweep.folder.name / "report.html"
    assert f"The sweep cost ${spent:,.2f} for " in report.read_text()


@pytest.mark.nightly
def test_a_sweep_for_the_loss_selects_the_trial_with_the_lowest(budgeted: Budgeted) -> None:
    sweep = budgeted.sweep
    losses = {name: record["epochs"][-1]["val_loss"] for name, record in sweep.records("search").items()}
    best = min(losses, key=lambda name: losses[name])
    assert sweep.plan["objective"] == ["loss"]
    decision = sweep.read("finals", "0001.json")
    assert decision["finalists"] == list(dict.fromkeys([best, decision["control"]]))
    assert "finals: the cheapest baseline is missing" in budgeted.finished.out  # neither naive nor scratch is a head
    assert "Best in cross-entropy is " in budgeted.finished.out
    rows = _ranking(budgeted.folder, sweep)
    assert rows[0]["trial"] == best
    assert [row["val_noisy_accuracy"] for row in rows] == [""] * 3
    noise = sweep.read("trials", f"{best}-s1", "noise.json")
    assert len({noisy["kind"] for noisy in noise["noisy"]}) == 7
