"""A sweep under one_epoch_top_k, killed while its trials wait for each other: the decision is the same."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import interrupted_sweep
from tests.check_resume import find_faults
from tests.interrupted_sweep import EPOCHS, TRIALS, Story
from tests.sweep_commands import CompletedCommand, without_timings

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

KEPT = 3


@dataclass(frozen=True)
class Killed(Story):
    """The sweep after a kill while trials waited, and a second start."""

    waiting: tuple[str, ...]
    """The trials that had an epoch and no record when the driver was killed."""
    ended: CompletedCommand


@pytest.fixture(scope="module")
def killed(image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    story = Story(tmp_path_factory.mktemp("killed_top_k"))
    flags = interrupted_sweep.flags(image_folder, weights, scheduler="one_epoch_top_k")
    command = story.start(flags, pace=1.0)
    waiting = story.wait_for_unfinished(command, count=2)  # two are training, and one is the probe
    command.signal(signal.SIGKILL)
    command.process.wait()
    command.clear()
    ended = story.start(flags, pace=0.0).end()
    return Killed(story.folder, tuple(waiting), ended)


@pytest.fixture(scope="module")
def undisturbed(image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The same trials with the scheduler none, uninterrupted."""
    return interrupted_sweep.undisturbed_sweep(tmp_path_factory, image_folder, weights)


def frozen_epochs(record: Any) -> int:
    """The epochs of frozen training, which one_epoch_top_k grants each trial before the epoch that counts."""
    return int(record["recipe"]["strategy"].get("freeze_epochs", 0))


def test_a_kill_while_trials_wait_loses_nothing(killed: Killed) -> None:
    assert len(killed.waiting) >= 2
    assert killed.ended.status == 0, killed.ended.out + killed.ended.err
    assert find_faults(killed.sweep.folder) == []


def test_the_best_trials_after_one_epoch_finish_and_the_others_are_pruned(killed: Killed, undisturbed: Story) -> None:
    complete = undisturbed.sweep.records("search")
    assert len(complete) == TRIALS
    first = {name: record["epochs"][frozen_epochs(record)]["val_accuracy"] for name, record in complete.items()}
    best = sorted(first, key=lambda name: (-first[name], name))[:KEPT]
    # Stopping a linear probe saves nothing: probes train in one batch.
    probes = [name for name, record in complete.items() if record["recipe"]["strategy"]["name"] == "linear_probe"]
    expected = {
        name: ("finished", EPOCHS) if name in {*best, *probes} else ("pruned", frozen_epochs(record) + 1)
        for name, record in complete.items()
    }
    records = killed.sweep.records("search")
    assert {name: (record["status"], len(record["epochs"])) for name, record in records.items()} == expected
    assert {status for status, _ in expected.values()} == {"finished", "pruned"}


def test_every_record_equals_that_of_the_undisturbed_sweep_as_far_as_it_goes(
    killed: Killed, undisturbed: Story
) -> None:
    complete = undisturbed.sweep.records("search")
    for name, record in killed.sweep.records("search").items():
        mine, theirs = without_timings(record), without_timings(complete[name])
        if record["status"] == "finished":
            assert mine == theirs, name
        else:
            assert (mine["recipe"], mine["id"]) == (theirs["recipe"], theirs["id"])
            assert mine["epochs"] == theirs["epochs"][: len(mine["epochs"])], name


def test_the_finalists_are_trials_that_finished_with_a_frozen_head_among_them(killed: Killed) -> None:
    finalists = killed.sweep.read("finals", "0001.json")["finalists"]
    searched = killed.sweep.records("search")
    assert {searched[finalist]["status"] for finalist in finalists} == {"finished"}
    assert any(searched[finalist]["recipe"]["strategy"]["name"] == "linear_probe" for finalist in finalists)
    seeds = range(1, interrupted_sweep.SEEDS + 1)
    assert killed.sweep.trials("final") == sorted(f"{finalist}-s{seed}" for finalist in finalists for seed in seeds)


def test_the_finals_equal_those_of_the_undisturbed_sweep_except_of_a_control_that_was_pruned(
    killed: Killed, undisturbed: Story
) -> None:
    mine, theirs = killed.sweep.records("final"), undisturbed.sweep.records("final")
    pruned = {name for name, record in killed.sweep.records("search").items() if record["status"] == "pruned"}
    expected = {name: record for name, record in theirs.items() if name.partition("-")[0] not in pruned}
    assert expected, "the best trial is among the best after one epoch"
    assert {name: without_timings(record) for name, record in mine.items()} == {
        name: without_timings(record) for name, record in expected.items()
    }
