"""A sweep over more backbones than it keeps, from the command line to its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweep_commands import CompletedCommand, SweepFolder, build_once, only_sweep, run

pytestmark = pytest.mark.slow

NETWORKS = ("test_resnet", "test_efficientnet", "test_vit")


@pytest.fixture(scope="module")
def flags(image_folder: Path, weights_of: Callable[[str], Path]) -> tuple[object, ...]:
    return (
        *("--data", image_folder, "--backbone", ",".join(NETWORKS), "--keep-backbones", 2, "--image-size", 32),
        *(
            "--weights",
            ",".join(f"{name}={weights_of(name)}" for name in NETWORKS),
            "--strategies",
            "lp_ft,linear_probe",
        ),
        *("--trials", 5, "--epochs", 2, "--finalists", 1, "--seeds", 1, "--no-advise"),
    )


@pytest.fixture(scope="module")
def sweep(flags: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedCommand]:
    """Where it was run, and how the command ended."""

    def make(folder: Path) -> None:
        places = ("--storage", folder / "runs", "--reports", folder / "reports")
        ended = run("folder", (*flags, *places), folder)
        assert ended.status == 0, ended.err
        (folder / "out").write_text(ended.out)

    folder = build_once(tmp_path_factory, "screening", make)
    return folder, CompletedCommand(0, (folder / "out").read_text(), "", 0.0)


@pytest.fixture(scope="module")
def left(sweep: tuple[Path, CompletedCommand]) -> SweepFolder:
    return only_sweep(sweep[0] / "runs")


def test_every_head_has_a_record_and_no_weights_are_kept_of_it(left: SweepFolder) -> None:
    records = left.records("screen")
    assert sorted(records) == [f"screen-{number:02d}" for number in range(30)]
    assert {record["status"] for record in records.values()} == {"finished"}
    assert {len(record["epochs"]) for record in records.values()} == {1}
    assert all(left.checkpoints(name) == [] for name in records)


def test_the_best_two_backbones_go_on_as_the_heads_records_say(
    left: SweepFolder, sweep: tuple[Path, CompletedCommand]
) -> None:
    decision = left.read("screening", "0001.json")
    best = dict.fromkeys(NETWORKS, 0.0)
    for record in left.records("screen").values():
        name = record["recipe"]["backbone"]
        best[name] = max(best[name], record["epochs"][-1]["val_accuracy"])
    ranked = sorted(NETWORKS, key=lambda name: -best[name])
    assert decision["kept"] + decision["dropped"] == ranked
    assert {record["recipe"]["backbone"] for record in left.records("search").values()} == set(decision["kept"])
    assert len(left.records("search")) == 5
    assert f"frozen features speak for {', '.join(decision['kept'])}; {ranked[2]} is left out" in sweep[1].out


def test_lp_ft_starts_with_the_head_that_a_record_of_the_screening_tells_of(left: SweepFolder) -> None:
    decision, checked = left.read("screening", "0001.json"), 0
    by_recipe = {
        (record["recipe"]["backbone"], record["recipe"]["strategy"]["penalty"]): record["epochs"][-1]["val_accuracy"]
        for record in left.records("screen").values()
        if record["recipe"]["strategy"]["name"] == "logistic_probe"
    }
    for record in left.records("search").values():
        recipe = record["recipe"]
        if recipe["strategy"]["name"] == "lp_ft":
            checked += 1
            assert recipe["strategy"]["penalty"] == decision["penalties"][recipe["backbone"]]
            assert record["start_accuracy"] == by_recipe[recipe["backbone"], recipe["strategy"]["penalty"]]
    assert checked


def test_the_report_shows_what_each_backbone_came_to(sweep: tuple[Path, CompletedCommand], left: SweepFolder) -> None:
    decision = left.read("screening", "0001.json")
    page = (sweep[0] / "reports" / left.folder.name / "report.md").read_text()
    section = page[page.index("## Backbone screening") : page.index("## Strategies")]
    rows = [line.split(" | ")[:2] for line in section.splitlines() if line.startswith("| test_")]
    assert rows == [
        *([f"| {name}", "yes"] for name in decision["kept"]),
        *([f"| {name}", "no"] for name in decision["dropped"]),
    ]


def test_the_same_command_again_has_nothing_to_do(
    sweep: tuple[Path, CompletedCommand], left: SweepFolder, flags: tuple[object, ...]
) -> None:
    before, places = left.times(), ("--storage", sweep[0] / "runs", "--reports", sweep[0] / "reports")
    ended = run("folder", (*flags, *places), sweep[0])
    assert ended.status == 0, ended.err
    assert left.times() == before
    assert len(list((left.folder / "screening").iterdir())) == 1


def test_begun_anew_without_the_decision_it_is_made_again_from_the_records(
    sweep: tuple[Path, CompletedCommand], left: SweepFolder, flags: tuple[object, ...]
) -> None:
    path = left.folder / "screening" / "0001.json"
    before, times, text = left.read("screening", "0001.json"), left.times(), path.read_text()
    path.unlink()
    try:
        places = ("--storage", sweep[0] / "runs", "--reports", sweep[0] / "reports")
        assert run("folder", (*flags, *places), sweep[0]).status == 0
        after = left.read("screening", "0001.json")
        assert {**after, "at": ""} == {**before, "at": ""}
        assert left.times() == times
    finally:
        path.write_text(text)
