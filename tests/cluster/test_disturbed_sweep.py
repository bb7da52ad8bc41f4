"""A sweep of real photos on a cluster that loses its workers: the same results as on one machine left in peace.

Every command is one that a user gives, at a desk outside of the cluster's network: `make cluster`, `ray job submit`,
`make ui CLUSTER=`, `ray down`. The story is played once for each kind of storage; tests look at it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.check_resume import find_faults
from tests.cluster.lab.laboratory import CommandResult, wait_until
from tests.cluster.scenarios import EPOCHS, FINALS, TRIALS, mlflow_runs, open_scenario
from tests.sweep_commands import SweepFolder, without_timings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("can_have_a_laboratory")]


@dataclass(frozen=True)
class Story:
    """What could be seen while it was played."""

    job: CommandResult
    workers_at_first: int
    held: dict[str, str]
    """The trials that were half-way when the first worker was lost, and the hosts that they were on."""
    lost: tuple[str, str]
    """The names of the worker that was taken away and of the one that was cut off."""
    replacements: tuple[str, str]
    """The names of those that joined for them."""
    alive: set[str]
    """The addresses of Ray's nodes when both replacements were there, before the sweep went on."""
    dead: set[str]
    """Those of the nodes that Ray had given up in the end."""
    machines: dict[str, Any]
    """All machines that there ever were, as the cloud knew them at the end."""
    events: list[dict[str, Any]]
    begun: list[tuple[str, int, str]]
    """Every epoch that was begun: trial, epoch, host."""
    results: SweepFolder
    mlflow: dict[str, Any]
    left_running: str
    """The processes of the laboratory once the cluster was down."""


@pytest.fixture(scope="module", params=["folder", "s3"])
def story(
    can_have_a_laboratory: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    photos: Path,
    pretrained: Path,
) -> Story:
    folder = tmp_path_factory.mktemp("disturbed")
    with open_scenario(request.param, folder, photos, pretrained) as here:
        lab, cluster = here.lab, here.cluster
        cluster.up()
        workers_at_first = len(cluster.workers)
        here.hold("0000", 2)  # the work must not be done before the replacements are there
        job = here.submit()
        held = here.wait_for_trials(2, 2, job)
        before = cluster.workers
        by_host = {f"host-{each['number']}": name for name, each in before.items()}
        (first, first_host), (_, second_host) = sorted(held.items())
        known = {each["address"] for each in before.values()}
        taken, cut = by_host[first_host], by_host[second_host]

        lab.ask("interrupt", machine=taken)
        third = cluster.wait_for_worker(known)
        what = "the trial that was lost went on elsewhere"
        wait_until(lambda: here.begun().count((first, 2, f"host-{_number(third)}")), what, cluster.explain)
        lab.ask("cut", machine=cut)
        fourth = cluster.wait_for_worker(known | {lab.machines()[third]["address"]})
        alive = cluster.nodes()
        here.release()
        said = job.end()
        dead = cluster.nodes("DEAD")
        mlflow = mlflow_runs(cluster, "folder") if said.status == 0 else {}
        results = here.results()

        wait_until(lambda: not cluster.workers, "idle workers had left", cluster.explain)
        cluster.down()
        return Story(
            job=said,
            workers_at_first=workers_at_first,
            held=held,
            lost=(taken, cut),
            replacements=(third, fourth),
            alive=alive,
            dead=dead,
            machines=lab.ask("describe"),
            events=lab.events(),
            begun=here.begun(),
            results=results,
            mlflow=mlflow,
            left_running=lab.run(None, "ps -e -o args="),
        )


def test_the_job_comes_to_its_end(story: Story) -> None:
    assert story.job.status == 0, story.job.out[-5000:]


def test_it_has_no_workers_before_there_is_work_and_then_as_many_as_it_may(story: Story) -> None:
    assert story.workers_at_first == 0
    assert len(set(story.held.values())) == 2


def test_a_replacement_joins_for_a_worker_that_is_taken_away_and_for_one_that_is_cut_off(story: Story) -> None:
    workers = [each["machine"] for each in story.events if each["what"] == "created" and each["kind"] != "head"]
    assert sorted(workers) == sorted({*story.lost, *story.replacements})
    assert len(workers) == 4
    assert {story.machines[name]["address"] for name in story.replacements} <= story.alive
    assert {story.machines[name]["address"] for name in story.lost} <= story.dead
    # Of the one that was cut off the cloud knew nothing: it was the cluster that gave it back.
    assert [each["what"] for each in story.events if each["machine"] == story.lost[1]][-2:] == ["cut", "terminated"]


def test_every_trial_is_there_once_with_consecutive_epochs_and_one_record(story: Story) -> None:
    assert find_faults(story.results.folder) == []
    records = story.results.records()
    assert len(records) == TRIALS + FINALS
    assert {record["status"] for record in records.values()} == {"finished"}


def test_only_the_trials_of_lost_workers_were_taken_up_again_and_from_their_last_checkpoint(story: Story) -> None:
    resumed = {name: record["resumed_at"] for name, record in story.results.records().items()}
    assert resumed == {name: [1] if name in story.held else [] for name in resumed}


def test_no_epoch_is_trained_twice_but_those_that_were_lost(story: Story) -> None:
    times = Counter((trial, epoch) for trial, epoch, _ in story.begun)
    assert len(times) == (TRIALS + FINALS) * EPOCHS
    assert {begun for begun, count in times.items() if count > 1} == {(trial, 2) for trial in story.held}
    assert max(times.values()) == 2


def test_all_records_are_those_of_an_undisturbed_sweep_on_one_machine(story: Story, undisturbed: Path) -> None:
    mine, theirs = story.results.records(), SweepFolder(undisturbed).records()
    assert mine.keys() == theirs.keys()
    for name, record in mine.items():
        assert without_timings(record) == without_timings(theirs[name]), name
    for name in story.results.trials("final"):
        assert story.results.read("trials", name, "test.json") == SweepFolder(undisturbed).read(
            "trials", name, "test.json"
        )


def test_mlflow_on_the_head_has_every_trial_once_and_to_its_last_epoch(story: Story) -> None:
    assert story.mlflow.keys() == {"", *story.results.trials()}
    assert {run["status"] for run in story.mlflow.values()} == {"FINISHED"}
    for name, record in story.results.records().items():
        step, value = story.mlflow[name]["metrics"]["val_accuracy"]
        assert step == EPOCHS
        assert value == pytest.approx(record["epochs"][-1]["val_accuracy"])


def test_what_the_machines_cost_is_known_by_the_labels_of_the_cluster_file(story: Story) -> None:
    prices = {name: price["usd_per_hour"] for name, price in story.results.plan["prices"].items()}
    assert prices == {"head": 0.192, "l4": 0.9776}
    spent = {each["node_type"]: each["seconds"] for each in story.results.read("spending", "0001.json")["machines"]}
    assert set(spent) == {"head", "l4"}
    assert spent["l4"] > 0
    assert "cost     $" in story.job.out


def test_idle_workers_leave_and_ray_down_leaves_nothing(story: Story) -> None:
    assert {each["state"] for each in story.machines.values()} == {"terminated"}
    programs = story.left_running
    assert not [line for line in programs.splitlines() if "ray" in line.split("/")[-1] or "mlflow" in line], programs
    assert programs.count("sshd -D") == 1  # the desk's own


def _number(machine: str) -> int:
    return int(machine.removeprefix("i-"))
