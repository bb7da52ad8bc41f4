"""A sweep of real photos on a cluster that loses its workers has the results of an undisturbed sweep on one machine.

Every command is one that a user gives, at a desk outside the cluster's network: `make cluster`, `ray job submit`,
`make ui CLUSTER=`, `ray down`. The story runs once for each kind of storage, and the tests assert on what was observed.
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
    """What was observed while the story ran."""

    job: CommandResult
    workers_before_job: int
    held: dict[str, str]
    """The trials that were half-way when the first worker was lost, and their hosts."""
    lost: tuple[str, str]
    """The names of the worker that was terminated and of the worker that was disconnected."""
    replacements: tuple[str, str]
    """The names of the workers that replaced them."""
    alive: set[str]
    """The addresses of Ray's live nodes once both replacements had joined, before the sweep continued."""
    dead: set[str]
    """The addresses of the nodes that Ray considered dead in the end."""
    machines: dict[str, Any]
    """Every machine that ever existed, as the cloud described it at the end."""
    events: list[dict[str, Any]]
    epochs: list[tuple[str, int, str]]
    """Every epoch that started: trial, epoch, host."""
    results: SweepFolder
    mlflow: dict[str, Any]
    left_running: str
    """The processes in the laboratory after `ray down`."""


@pytest.fixture(scope="module", params=[pytest.param("folder", marks=pytest.mark.nightly), "s3"])
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
        workers_before_job = len(cluster.workers)
        here.hold("0000", 2)  # the sweep must not finish before the replacements join
        job = here.submit()
        held = here.wait_for_trials(2, 2, job)
        before = cluster.workers
        by_host = {f"host-{each['number']}": name for name, each in before.items()}
        (first, first_host), (_, second_host) = sorted(held.items())
        known = {each["address"] for each in before.values()}
        taken, cut = by_host[first_host], by_host[second_host]

        lab.ask("interrupt", machine=taken)
        third = cluster.wait_for_worker(known)
        what = "the lost trial resumed elsewhere"
        wait_until(lambda: here.started_epochs().count((first, 2, f"host-{_number(third)}")), what, cluster.explain)
        lab.ask("cut", machine=cut)
        fourth = cluster.wait_for_worker(known | {lab.machines()[third]["address"]})
        alive = cluster.nodes()
        here.release()
        completed = job.end()
        dead = cluster.nodes("DEAD")
        mlflow = mlflow_runs(cluster, "folder") if completed.status == 0 else {}
        results = here.results()

        wait_until(lambda: not cluster.workers, "idle workers had left", cluster.explain)
        cluster.down()
        return Story(
            job=completed,
            workers_before_job=workers_before_job,
            held=held,
            lost=(taken, cut),
            replacements=(third, fourth),
            alive=alive,
            dead=dead,
            machines=lab.ask("describe"),
            events=lab.events(),
            epochs=here.started_epochs(),
            results=results,
            mlflow=mlflow,
            left_running=lab.run(None, "ps -e -o args="),
        )


def test_the_job_finishes(story: Story) -> None:
    assert story.job.status == 0, story.job.out[-5000:]


def test_there_are_no_workers_before_the_job_and_the_maximum_during_it(story: Story) -> None:
    assert story.workers_before_job == 0
    assert len(set(story.held.values())) == 2


def test_a_terminated_and_a_disconnected_worker_are_both_replaced(story: Story) -> None:
    workers = [each["machine"] for each in story.events if each["what"] == "created" and each["kind"] != "head"]
    assert sorted(workers) == sorted({*story.lost, *story.replacements})
    assert len(workers) == 4
    assert {story.machines[name]["address"] for name in story.replacements} <= story.alive
    assert {story.machines[name]["address"] for name in story.lost} <= story.dead
    # The cloud did not notice the disconnected worker; the cluster terminated it.
    assert [each["what"] for each in story.events if each["machine"] == story.lost[1]][-2:] == ["cut", "terminated"]


def test_every_trial_exists_once_with_consecutive_epochs_and_one_record(story: Story) -> None:
    assert find_faults(story.results.folder) == []
    records = story.results.records()
    assert len(records) == TRIALS + FINALS
    assert {record["status"] for record in records.values()} == {"finished"}


def test_only_the_trials_of_lost_workers_resume_and_from_their_last_checkpoint(story: Story) -> None:
    resumed = {name: record["resumed_at"] for name, record in story.results.records().items()}
    assert resumed == {name: [1] if name in story.held else [] for name in resumed}


def test_no_epoch_is_trained_twice_but_those_that_were_lost(story: Story) -> None:
    times = Counter((trial, epoch) for trial, epoch, _ in story.epochs)
    assert len(times) == (TRIALS + FINALS) * EPOCHS
    assert {begun for begun, count in times.items() if count > 1} == {(trial, 2) for trial in story.held}
    assert max(times.values()) == 2


def test_all_records_equal_those_of_an_undisturbed_sweep_on_one_machine(story: Story, undisturbed: Path) -> None:
    mine, theirs = story.results.records(), SweepFolder(undisturbed).records()
    assert mine.keys() == theirs.keys()
    for name, record in mine.items():
        assert without_timings(record) == without_timings(theirs[name]), name
    for name in story.results.trials("final"):
        assert story.results.read("trials", name, "test.json") == SweepFolder(undisturbed).read(
            "trials", name, "test.json"
        )


def test_mlflow_on_the_head_has_every_trial_once_up_to_its_last_epoch(story: Story) -> None:
    assert story.mlflow.keys() == {"", *story.results.trials()}
    assert {run["status"] for run in story.mlflow.values()} == {"FINISHED"}
    for name, record in story.results.records().items():
        step, value = story.mlflow[name]["metrics"]["val_accuracy"]
        assert step == EPOCHS
        assert value == pytest.approx(record["epochs"][-1]["val_accuracy"])


def test_the_cost_uses_the_prices_in_the_labels_of_the_cluster_file(story: Story) -> None:
    prices = {name: price["usd_per_hour"] for name, price in story.results.plan["prices"].items()}
    assert prices == {"head": 0.192, "l4": 0.9776}
    spent = {each["node_type"]: each["seconds"] for each in story.results.read("spending", "0001.json")["machines"]}
    assert set(spent) == {"head", "l4"}
    assert spent["l4"] > 0
    assert "cost     $" in story.job.out


def test_idle_workers_terminate_and_ray_down_leaves_nothing_running(story: Story) -> None:
    assert {each["state"] for each in story.machines.values()} == {"terminated"}
    programs = story.left_running
    assert not [line for line in programs.splitlines() if "ray" in line.split("/")[-1] or "mlflow" in line], programs
    assert programs.count("sshd -D") == 1  # that of the desk


def _number(machine: str) -> int:
    return int(machine.removeprefix("i-"))
