"""A sweep over more backbones than it keeps, from the command line to its report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.sweep_commands import CompletedCommand, SweepFolder, build_once, only_sweep, run

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

NETWORKS = ("test_resnet", "test_efficientnet", "test_vit")


@pytest.fixture(scope="module")
def flags(image_folder: Path, weights_of: Callable[[str], Path]) -> tuple[object, ...]:
    weights = ",".join(f"{name}={weights_of(name)}" for name in NETWORKS)
    return (
        *("--data", image_folder, "--backbone", ",".join(NETWORKS), "--keep-backbones", 2, "--image-size", 32),
        *("--weights", weights, "--strategies", "lp_ft,linear_probe", "--no-advise"),
        *("--trials", 5, "--epochs", 2, "--finalists", 1, "--seeds", 1),
    )


def folder_flags(folder: Path) -> tuple[object, ...]:
    return ("--storage", folder / "runs", "--reports", folder / "reports")


@pytest.fixture(scope="module")
def completed(flags: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedCommand]:
    """The folder of the sweep, and how its command ended."""

    def make(folder: Path) -> None:
        command = run("folder", (*flags, *folder_flags(folder)), folder)
        assert command.status == 0, command.err
        (folder / "out").write_text(command.out)

    folder = build_once(tmp_path_factory, "screening", make)
    return folder, CompletedCommand(0, (folder / "out").read_text(), "", 0.0)


@pytest.fixture(scope="module")
def sweep(completed: tuple[Path, CompletedCommand]) -> SweepFolder:
    return only_sweep(completed[0] / "runs")


@pytest.fixture
def repeat(
    completed: tuple[Path, CompletedCommand], flags: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """Runs the same command again in this process, where Ray must not start; returns the exit status."""
    import ray

    from sweeps import folder as page
    from sweeps.engine.cli import main

    def no_ray(*_: Any, **__: Any) -> None:
        pytest.fail("Ray was started")

    def again() -> int:
        monkeypatch.setattr(sys, "argv", list(map(str, ("folder", *flags, *folder_flags(completed[0])))))
        monkeypatch.setattr(ray, "init", no_ray)
        with pytest.raises(SystemExit) as ended:
            main(page.plan, page.__doc__)
        return int(str(ended.value.code))

    return again


def test_every_head_has_a_record_and_no_checkpoint(sweep: SweepFolder) -> None:
    records = sweep.records("screen")
    assert sorted(records) == [f"screen-{number:02d}" for number in range(30)]
    assert {record["status"] for record in records.values()} == {"finished"}
    assert {len(record["epochs"]) for record in records.values()} == {1}
    assert all(sweep.checkpoints(name) == [] for name in records)


def test_only_the_two_backbones_with_the_best_heads_are_searched(
    sweep: SweepFolder, completed: tuple[Path, CompletedCommand]
) -> None:
    decision = sweep.read("screening", "0001.json")
    best = dict.fromkeys(NETWORKS, 0.0)
    for record in sweep.records("screen").values():
        name = record["recipe"]["backbone"]
        best[name] = max(best[name], record["epochs"][-1]["val_accuracy"])
    ranked = sorted(NETWORKS, key=lambda name: -best[name])
    assert decision["kept"] + decision["dropped"] == ranked
    assert {record["recipe"]["backbone"] for record in sweep.records("search").values()} == set(decision["kept"])
    assert len(sweep.records("search")) == 5
    assert f"frozen features speak for {', '.join(decision['kept'])}; {ranked[2]} is left out" in completed[1].out


def test_lp_ft_starts_from_a_head_that_was_screened(sweep: SweepFolder) -> None:
    decision, checked = sweep.read("screening", "0001.json"), 0
    by_recipe = {
        (record["recipe"]["backbone"], record["recipe"]["strategy"]["penalty"]): record["epochs"][-1]["val_accuracy"]
        for record in sweep.records("screen").values()
        if record["recipe"]["strategy"]["name"] == "logistic_probe"
    }
    for record in sweep.records("search").values():
        recipe = record["recipe"]
        if recipe["strategy"]["name"] == "lp_ft":
            checked += 1
            assert recipe["strategy"]["penalty"] == decision["penalties"][recipe["backbone"]]
            assert record["start_accuracy"] == by_recipe[recipe["backbone"], recipe["strategy"]["penalty"]]
    assert checked


def test_the_report_lists_every_backbone_and_whether_it_was_kept(
    completed: tuple[Path, CompletedCommand], sweep: SweepFolder
) -> None:
    decision = sweep.read("screening", "0001.json")
    page = (completed[0] / "reports" / sweep.folder.name / "report.md").read_text()
    section = page[page.index("## Backbone screening") : page.index("## Strategies")]
    rows = [line.split(" | ")[:2] for line in section.splitlines() if line.startswith("| test_")]
    assert rows == [
        *([f"| {name}", "yes"] for name in decision["kept"]),
        *([f"| {name}", "no"] for name in decision["dropped"]),
    ]


def test_repeating_the_command_trains_and_decides_nothing(sweep: SweepFolder, repeat: Callable[[], int]) -> None:
    times = sweep.times()
    assert repeat() == 0
    assert sweep.times() == times
    assert len(list((sweep.folder / "screening").iterdir())) == 1


def test_a_deleted_decision_is_made_again_from_the_records(sweep: SweepFolder, repeat: Callable[[], int]) -> None:
    path = sweep.folder / "screening" / "0001.json"
    decision, times, text = sweep.read("screening", "0001.json"), sweep.times(), path.read_text()
    path.unlink()
    try:
        assert repeat() == 0
        assert {**sweep.read("screening", "0001.json"), "at": ""} == {**decision, "at": ""}
        assert sweep.times() == times
    finally:
        path.write_text(text)
