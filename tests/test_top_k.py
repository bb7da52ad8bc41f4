"""A sweep under one_epoch_top_k: everybody waits for everybody, and a kill in between changes nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.check_resume import find_faults
from tests.sweep_commands import (
    Command,
    CompletedCommand,
    SweepFolder,
    build_once,
    install_observer,
    only_sweep,
    without_timings,
)

pytestmark = pytest.mark.slow

TRIALS, EPOCHS, KEPT = 6, 3, 3


def start(folder: Path, image_folder: Path, weights: Path, pace: float) -> Command:
    flags = [
        *("--data", image_folder, "--backbone", "test_efficientnet", "--weights", weights, "--image-size", 32),
        *("--trials", TRIALS, "--epochs", EPOCHS, "--fix", "batch_size=4", "--strategies", "naive,linear_probe,clip"),
        *("--sampler", "random", "--scheduler", "one_epoch_top_k", "--finalists", 1, "--seeds", 1, "--concurrent", 2),
        *("--storage", folder / "runs", "--reports", folder / "reports"),
    ]
    return Command("folder", flags, folder / "logs", folder / "observer", seconds_per_epoch=pace)


@pytest.fixture(scope="module")
def undisturbed(image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    def make(folder: Path) -> None:
        install_observer(folder / "observer")
        ended = start(folder, image_folder, weights, 0.0).end()
        assert ended.status == 0, ended.out + ended.err

    return only_sweep(build_once(tmp_path_factory, "undisturbed_top_k", make) / "runs")


@pytest.fixture(scope="module")
def killed(
    image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SweepFolder, list[str], CompletedCommand]:
    """The sweep, which trials waited when it was killed, and how it ended when it was given again."""
    folder = tmp_path_factory.mktemp("killed_top_k")
    install_observer(folder / "observer")
    command = start(folder, image_folder, weights, 1.0)

    def seen() -> list[str]:
        waiting = only_sweep(folder / "runs").unfinished_trials() if list((folder / "runs").glob("*/plan.json")) else []
        return waiting if len(waiting) >= 3 else []

    waited: list[str] = command.wait_until(seen, "three trials had had their epoch")
    command.signal(signal.SIGKILL)
    command.process.wait()
    command.clear()
    ended = start(folder, image_folder, weights, 0.0).end()
    return only_sweep(folder / "runs"), waited, ended


def test_the_best_after_one_epoch_go_on_to_the_end_and_the_others_end_there(undisturbed: SweepFolder) -> None:
    records = undisturbed.records("search")
    first = {name: record["epochs"][0]["val_accuracy"] for name, record in records.items()}
    best = sorted(first, key=lambda name: (-first[name], name))[:KEPT]
    # Heads trained side by side cost nothing that stopping them would save.
    best += [name for name, record in records.items() if record["recipe"]["strategy"]["name"] == "linear_probe"]
    assert {name: (record["status"], len(record["epochs"])) for name, record in records.items()} == {
        name: ("finished", EPOCHS) if name in best else ("pruned", 1) for name in first
    }
    assert len(records) == TRIALS


def test_a_kill_while_trials_wait_loses_nothing(killed: tuple[SweepFolder, list[str], CompletedCommand]) -> None:
    left, waited, ended = killed
    assert len(waited) >= 3
    assert ended.status == 0, ended.out + ended.err
    assert find_faults(left.folder) == []


def test_and_every_record_is_that_of_the_undisturbed_sweep(
    killed: tuple[SweepFolder, list[str], CompletedCommand], undisturbed: SweepFolder
) -> None:
    mine, theirs = killed[0].records(), undisturbed.records()
    assert {name: without_timings(record) for name, record in mine.items()} == {
        name: without_timings(record) for name, record in theirs.items()
    }


def test_the_finalist_is_one_that_went_on(undisturbed: SweepFolder) -> None:
    (finalist,) = undisturbed.read("finals", "0001.json")["finalists"]
    assert undisturbed.records("search")[finalist]["status"] == "finished"
    assert undisturbed.trials("final") == [f"{finalist}-s1"]
