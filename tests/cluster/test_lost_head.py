"""The head of a cluster is lost in the middle of a sweep: `ray up` and the same command resume it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab.laboratory import CommandResult, wait_until
from tests.cluster.scenarios import EPOCHS, FINALS, TRIALS, Scenario, mlflow_runs, open_scenario
from tests.sweep_commands import SweepFolder, without_timings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("can_have_a_laboratory")]


@dataclass(frozen=True)
class Story:
    """What was observed while the story ran."""

    first: CommandResult
    """How `ray job submit` ended when the head was lost."""
    finished: dict[str, int]
    """The trials that had a record when the head was lost, with its modification time in ns."""
    running: set[str]
    """The trials that were half-way then."""
    second: CommandResult
    heads: list[str]
    """The addresses of the first and the second head."""
    epochs: list[tuple[str, int, str]]
    """Every epoch that started: trial, epoch, host."""
    results: SweepFolder
    mlflow: dict[str, Any]


@pytest.fixture(scope="module")
def story(
    can_have_a_laboratory: None, tmp_path_factory: pytest.TempPathFactory, photos: Path, pretrained: Path
) -> Story:
    with open_scenario("folder", tmp_path_factory.mktemp("lost-head"), photos, pretrained) as here:
        lab, cluster = here.lab, here.cluster
        cluster.up()
        here.hold("0002", 2)
        first = here.submit()
        running = set(here.wait_for_trials(2, 4, first)) - {"0000", "0001"}
        finished = record_times(here)
        (head,) = lab.machines(kind="head")
        address = cluster.head["address"]
        lab.ask("interrupt", machine=head)
        lost = first.end()

        cluster.up()
        again = here.submit()

        def resumed() -> bool:
            assert again.is_running(), again.out
            return all(sum(epoch[:2] == (trial, 2) for epoch in here.started_epochs()) == 2 for trial in running)

        # Processes of the lost head may live until then: they end when their machine joins the new head.
        wait_until(resumed, "the new job had resumed the trials", cluster.explain)
        here.release()
        second = again.end()
        results, mlflow = here.results(), mlflow_runs(cluster, "folder") if second.status == 0 else {}
        heads = [address, cluster.head["address"]]
        cluster.down()
        wait_until(lambda: not lab.machines(), "no machine was left", lab.log)
        return Story(lost, finished, running, second, heads, here.started_epochs(), results, mlflow)


def record_times(here: Scenario) -> dict[str, int]:
    """The modification time in ns of each record, by trial."""
    records = here.results().folder.glob("trials/*/record.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in records}


def test_the_job_that_was_submitted_fails_when_the_head_is_lost(story: Story) -> None:
    assert story.first.status != 0


def test_the_same_command_on_a_new_head_finishes(story: Story) -> None:
    assert story.second.status == 0, story.second.out[-5000:]
    assert len(set(story.heads)) == 2


def test_finished_trials_are_not_run_again(story: Story) -> None:
    assert story.finished.keys() == {"0000", "0001"}
    records = story.results.folder / "trials"
    assert {name: (records / name / "record.json").stat().st_mtime_ns for name in story.finished} == story.finished
    times = Counter((trial, epoch) for trial, epoch, _ in story.epochs)
    assert {times[trial, epoch] for trial in story.finished for epoch in range(1, EPOCHS + 1)} == {1}


def test_unfinished_trials_resume_from_their_last_checkpoint(story: Story) -> None:
    assert len(story.running) == 2
    resumed = {name: record["resumed_at"] for name, record in story.results.records().items()}
    assert resumed == {name: [1] if name in story.running else [] for name in resumed}


def test_all_records_equal_those_of_an_undisturbed_sweep(story: Story, undisturbed: Path) -> None:
    mine, theirs = story.results.records(), SweepFolder(undisturbed).records()
    assert len(mine) == TRIALS + FINALS
    assert {name: without_timings(each) for name, each in mine.items()} == {
        name: without_timings(each) for name, each in theirs.items()
    }


def test_mlflow_on_the_new_head_has_the_whole_sweep(story: Story) -> None:
    assert story.mlflow.keys() == {"", *story.results.trials()}
    assert {run["status"] for run in story.mlflow.values()} == {"FINISHED"}
