"""The head of a cluster is lost in the middle of a sweep: `ray up` and the same command go on from there."""

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
    """What could be seen while it was played."""

    first: CommandResult
    """How the job ended, for whoever waited for it."""
    finished: dict[str, int]
    """The trials that had a record when the head was lost, and when each was written."""
    running: set[str]
    """Those that were half-way."""
    second: CommandResult
    heads: list[str]
    """The addresses of the heads that there were."""
    begun: list[tuple[str, int, str]]
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
        finished = written(here)
        (head,) = lab.machines(kind="head")
        address = cluster.head["address"]
        lab.ask("interrupt", machine=head)
        lost = first.end()

        cluster.up()
        again = here.submit()

        def taken_up() -> bool:
            assert again.is_running(), again.out
            return all(sum(begun[:2] == (trial, 2) for begun in here.begun()) == 2 for trial in running)

        # Until then what the lost head had started may still be there: it ends when its machine joins the new one.
        wait_until(taken_up, "the new job had taken up the trials", cluster.explain)
        here.release()
        second = again.end()
        results, mlflow = here.results(), mlflow_runs(cluster, "folder") if second.status == 0 else {}
        heads = [address, cluster.head["address"]]
        cluster.down()
        wait_until(lambda: not lab.machines(), "no machine was left", lab.log)
        return Story(lost, finished, running, second, heads, here.begun(), results, mlflow)


def written(here: Scenario) -> dict[str, int]:
    """The records that there are, and when each was written."""
    records = here.results().folder.glob("trials/*/record.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in records}


def test_whoever_waited_for_the_job_is_told(story: Story) -> None:
    assert story.first.status != 0


def test_the_same_command_on_a_new_head_comes_to_its_end(story: Story) -> None:
    assert story.second.status == 0, story.second.out[-5000:]
    assert len(set(story.heads)) == 2


def test_what_had_finished_is_not_run_again(story: Story) -> None:
    assert story.finished.keys() == {"0000", "0001"}
    records = story.results.folder / "trials"
    assert {name: (records / name / "record.json").stat().st_mtime_ns for name in story.finished} == story.finished
    times = Counter((trial, epoch) for trial, epoch, _ in story.begun)
    assert {times[trial, epoch] for trial in story.finished for epoch in range(1, EPOCHS + 1)} == {1}


def test_what_was_half_way_goes_on_from_its_last_checkpoint(story: Story) -> None:
    assert len(story.running) == 2
    resumed = {name: record["resumed_at"] for name, record in story.results.records().items()}
    assert resumed == {name: [1] if name in story.running else [] for name in resumed}


def test_all_records_are_those_of_an_undisturbed_sweep(story: Story, undisturbed: Path) -> None:
    mine, theirs = story.results.records(), SweepFolder(undisturbed).records()
    assert len(mine) == TRIALS + FINALS
    assert {name: without_timings(each) for name, each in mine.items()} == {
        name: without_timings(each) for name, each in theirs.items()
    }


def test_the_new_heads_mlflow_has_the_whole_sweep(story: Story) -> None:
    assert story.mlflow.keys() == {"", *story.results.trials()}
    assert {run["status"] for run in story.mlflow.values()} == {"FINISHED"}
