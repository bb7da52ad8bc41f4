"""Sweeps that are killed, interrupted, contested and damaged: they resume, lose nothing and do nothing twice.

Each fixture runs one story with real processes and a real Ray cluster; the tests assert on what it left behind.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import interrupted_sweep
from tests.check_resume import find_faults
from tests.interrupted_sweep import EPOCHS, TRIALS, Story
from tests.sweep_commands import (
    CompletedCommand,
    StartedEpoch,
    nonempty_lines,
    run,
    started_epochs,
    without_timings,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def flags(image_folder: Path, weights: Path) -> list[object]:
    return interrupted_sweep.flags(image_folder, weights)


@pytest.fixture(scope="module")
def undisturbed(image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    return interrupted_sweep.undisturbed_sweep(tmp_path_factory, image_folder, weights)


@dataclass(frozen=True)
class Killed(Story):
    """A sweep whose driver is killed in the search and in the finals, and that then runs to its end."""

    unfinished: tuple[frozenset[str], ...]
    """For each kill, the trials that had started and had no record."""
    write_times: tuple[dict[str, int], ...]
    """For each kill, when each object had been written."""
    scratch_folders: tuple[tuple[Path, bool], ...]
    """For each kill, the driver's folder of temporary files, and whether it was there before."""
    truncated: str
    """The trial whose newest checkpoint was truncated after the second kill."""
    checkpoint_epochs: tuple[int, int]
    """The epochs of that trial's two checkpoints; the second is the truncated one."""
    ended: CompletedCommand


@pytest.fixture(scope="module")
def killed(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Killed:
    story = Story(tmp_path_factory.mktemp("killed"))
    unfinished, write_times, scratch_folders = [], [], []
    for phase, epochs in (("", 1), ("-s", 2)):
        command = story.start(flags)
        story.wait_for_unfinished(command, phase, epochs)
        scratch = Path(tempfile.gettempdir(), f"xfer-{command.process.pid}")
        scratch_folders.append((scratch, scratch.is_dir()))  # before: another sweep's start may remove it at once
        command.signal(signal.SIGKILL)
        command.process.wait()
        command.clear()
        unfinished.append(frozenset(story.sweep.trials()) - story.sweep.records().keys())
        write_times.append(story.sweep.times())
    truncated = next(name for name in story.sweep.unfinished_trials(2) if len(story.sweep.checkpoints(name)) == 2)
    before, newest = story.sweep.checkpoints(truncated)
    os.truncate(newest, newest.stat().st_size // 2)
    checkpoint_epochs = (int(before.name.split("-")[1]), int(newest.name.split("-")[1]))
    ended = story.start(flags, pace=0.0).end()
    return Killed(
        story.folder,
        tuple(unfinished),
        tuple(write_times),
        tuple(scratch_folders),
        truncated,
        checkpoint_epochs,
        ended,
    )


@dataclass(frozen=True)
class Interrupted(Story):
    """A sweep that meets a second driver, gets Ctrl-C, then SIGTERM twice, and at last loses one trial's process."""

    driver: int
    """The process id of the first driver."""
    second_driver: CompletedCommand
    first_still_ran: bool
    """Whether the first driver was running when the second had ended."""
    listening: set[str]
    """The addresses on which the first driver's processes listened while trials ran."""
    first: CompletedCommand
    file_sizes_after_first: dict[str, int]
    terminated: CompletedCommand
    seconds_to_end: float
    """From the second SIGTERM to the end."""
    lost: StartedEpoch
    """What the killed process was training."""
    epochs_before_last: int
    """How many epochs had started before the last command."""
    last: CompletedCommand


@pytest.fixture(scope="module")
def interrupted(flags: list[object], tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    story = Story(tmp_path_factory.mktemp("interrupted"))

    command = story.start(flags, pace=6.0)
    story.wait_for_unfinished(command)
    second_driver = run("folder", [*flags, *story.folder_flags], story.folder / "logs")
    first_still_ran = command.is_running()
    story.wait_for_unfinished(command)
    listening = command.listening_addresses()
    command.signal(signal.SIGINT)
    first, driver = command.end(), command.process.pid
    file_sizes_after_first = {path.name: path.stat().st_size for path in story.sweep.folder.iterdir()}

    epochs_before = story.epochs_started()
    command = story.start(flags)
    command.wait_until(lambda: story.epochs_started() > epochs_before + 2, "epochs were trained again")
    os.kill(command.process.pid, signal.SIGTERM)
    time.sleep(0.5)
    at = time.monotonic()
    if command.is_running():
        os.kill(command.process.pid, signal.SIGTERM)
    command.process.wait(60)
    seconds_to_end = time.monotonic() - at
    terminated = command.end()

    epochs_before = story.epochs_started()
    command = story.start(flags)

    def in_second_epoch() -> list[StartedEpoch]:
        """The epochs in training whose trial has already saved one since this start."""
        notes = started_epochs(story.observer)[epochs_before:]
        newest = {note.pid: note for note in notes}
        finished = story.sweep.records()
        counts = Counter(note.trial for note in notes)
        return [note for note in newest.values() if counts[note.trial] > 1 and note.trial not in finished]

    lost: StartedEpoch = command.wait_until(in_second_epoch, "a trial trained its second epoch")[0]
    assert command.process.pid in _ancestors(lost.pid)
    os.kill(lost.pid, signal.SIGKILL)
    last = command.end()
    return Interrupted(
        story.folder,
        driver,
        second_driver,
        first_still_ran,
        listening,
        first,
        file_sizes_after_first,
        terminated,
        seconds_to_end,
        lost,
        epochs_before,
        last,
    )


def _ancestors(pid: int) -> list[int]:
    pids = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        pids.append(pid)
    return pids


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_killed_sweep_runs_to_its_end_when_the_command_is_repeated(killed: Killed) -> None:
    assert killed.ended.status == 0, killed.ended.out + killed.ended.err
    assert not any(line.startswith("search:") for line in killed.ended.out.splitlines())  # only the finals resumed
    assert len(list((killed.folder / "reports").glob("*/report.html"))) == 1


def test_temporary_files_of_a_killed_driver_are_removed_by_the_next(killed: Killed) -> None:
    assert [was_there for _, was_there in killed.scratch_folders] == [True, True]
    assert [folder for folder, _ in killed.scratch_folders if folder.exists()] == []


def test_a_resumed_sweep_says_what_is_done_and_what_is_best_so_far(killed: Killed) -> None:
    [line] = [line for line in nonempty_lines(killed.ended.out) if line.startswith("done so far: ")]
    text = " ".join(killed.ended.out[killed.ended.out.index(line) :].split())
    finals = len(killed.sweep.records("final"))
    match = re.match(
        rf"done so far: search {TRIALS} of {TRIALS} \({TRIALS} finished\), finals \d of {finals}.*?; \d runs? to "
        rf"continue; best so far ([\d.]+)% on validation, (\w+) \(.*\) in trial (\d+)",
        text,
    )
    assert match is not None, text
    record = killed.sweep.records("search")[match[3]]
    best = max(each["epochs"][-1]["val_accuracy"] for each in killed.sweep.records("search").values())
    assert record["epochs"][-1]["val_accuracy"] == best
    assert (f"{100 * best:.1f}", record["recipe"]["strategy"]["name"]) == (match[1], match[2])


def test_every_trial_exists_once_with_consecutive_epochs_and_one_record(killed: Killed) -> None:
    assert find_faults(killed.sweep.folder) == []


def test_each_kill_hit_trials_half_way(killed: Killed) -> None:
    assert all(1 <= len(names) <= 2 for names in killed.unfinished)
    assert not any("-s" in name for name in killed.unfinished[0])
    assert all("-s" in name for name in killed.unfinished[1])


def test_trials_that_were_running_at_a_kill_resume_from_their_last_epoch(killed: Killed) -> None:
    for unfinished, times in zip(killed.unfinished, killed.write_times, strict=True):
        for name in unfinished - {killed.truncated}:
            epochs = sum(path.startswith(f"trials/{name}/epochs/") for path in times)
            resumed = killed.sweep.records()[name]["resumed_at"]
            # A kill may fall between saving a checkpoint and noting its epoch; the checkpoint comes first.
            assert resumed in ([], [1]) if epochs == 0 else resumed in ([epochs], [epochs + 1])


def test_trials_that_were_not_running_at_a_kill_were_never_resumed(killed: Killed) -> None:
    disturbed = frozenset().union(*killed.unfinished)
    resumed = {name for name, record in killed.sweep.records().items() if record["resumed_at"]}
    assert resumed <= disturbed


def test_objects_written_before_a_kill_are_never_rewritten(killed: Killed) -> None:
    after = killed.sweep.times()
    for times in killed.write_times:
        objects = {path: at for path, at in times.items() if path.endswith(".json")}
        assert objects
        assert {path: after.get(path) for path in objects} == objects


def test_a_kill_costs_each_running_trial_at_most_one_epoch(killed: Killed, undisturbed: Story) -> None:
    searched = undisturbed.sweep.records("search").values()
    probes = sum(record["recipe"]["strategy"]["name"] == "linear_probe" for record in searched)  # not trained by a Run
    finals = len(undisturbed.sweep.trials("final"))  # probes among the finalists are trained by a Run
    assert len(started_epochs(undisturbed.observer)) == (TRIALS - probes + finals) * EPOCHS
    notes = started_epochs(killed.observer)
    again = Counter((note.trial, note.epoch) for note in notes)
    lost = Counter(trial for trial, epoch in again.elements()) - Counter(dict.fromkeys(_names(notes), EPOCHS))
    assert lost.keys() <= killed.unfinished[0] | killed.unfinished[1]
    lost[killed.truncated] -= 1  # its damaged checkpoint's
    assert all(count <= 1 for count in lost.values())
    assert len(notes) <= len(started_epochs(undisturbed.observer)) + sum(map(len, killed.unfinished)) + 1


def test_the_records_of_a_killed_sweep_equal_those_of_an_undisturbed_one(killed: Killed, undisturbed: Story) -> None:
    mine, theirs = killed.sweep.records(), undisturbed.sweep.records()
    assert mine.keys() == theirs.keys()
    for name, record in mine.items():
        assert without_timings(record) == without_timings(theirs[name]), name
    for name in undisturbed.sweep.trials("final"):
        for result in ("test.json", "noise.json"):
            assert killed.sweep.read("trials", name, result) == undisturbed.sweep.read("trials", name, result)


def test_finalists_and_the_opening_of_the_test_part_are_decided_once(killed: Killed, undisturbed: Story) -> None:
    for kind in ("finals", "openings"):
        (mine,), (theirs,) = ((list((story.sweep.folder / kind).iterdir())) for story in (killed, undisturbed))
        assert mine.name == theirs.name == "0001.json"
        assert killed.sweep.read(kind, mine.name)["finalists"] == undisturbed.sweep.read(kind, mine.name)["finalists"]


def test_mlflow_has_every_epoch_of_a_killed_sweep_once(killed: Killed, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    shutil.copy(killed.storage / "mlflow.db", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
    runs = {each.data.tags.get("xfer.trial", "parent"): each for each in client.search_runs([experiment.experiment_id])}
    finals = killed.sweep.trials("final")
    assert len(client.search_runs([experiment.experiment_id])) == len(runs) == TRIALS + len(finals) + 1
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    for name in killed.sweep.trials():
        history = client.get_metric_history(runs[name].info.run_id, "val_accuracy")
        assert sorted(metric.step for metric in history) == list(range(1, EPOCHS + 1))
    for name in ("trials_finished", "trials_pruned", "trials_failed"):
        history = client.get_metric_history(runs["parent"].info.run_id, name)
        assert sorted(metric.step for metric in history) == list(range(TRIALS + 1))


def test_a_truncated_checkpoint_is_detected_and_the_previous_one_used(killed: Killed) -> None:
    assert killed.checkpoint_epochs[1] == killed.checkpoint_epochs[0] + 1
    assert killed.sweep.records()[killed.truncated]["resumed_at"] == [killed.checkpoint_epochs[0]]


def test_a_truncated_checkpoint_is_named_in_the_log(killed: Killed) -> None:
    log = "".join(path.read_text() for path in (killed.sweep.folder / "logs").iterdir())
    assert f"trials/{killed.truncated}/checkpoints/epoch-{killed.checkpoint_epochs[1]:04d}" in log
    assert "is damaged (its checksum differs): resuming from the one before it" in log


# --- contested, interrupted, a process lost ---------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_second_driver_is_refused_and_told_which_process_holds_the_sweep(interrupted: Interrupted) -> None:
    assert interrupted.second_driver.status == 2
    assert interrupted.second_driver.err.startswith("error: another driver is at work on folder-colours-")
    assert f"process {interrupted.driver} on " in interrupted.second_driver.err
    assert "Traceback" not in interrupted.second_driver.err
    assert interrupted.first_still_ran


@pytest.mark.nightly
def test_nothing_that_a_sweep_starts_on_one_machine_can_be_reached_from_another(interrupted: Interrupted) -> None:
    assert interrupted.listening == {"127.0.0.1"}


@pytest.mark.nightly
def test_ctrl_c_exits_with_status_130_and_says_how_to_resume(interrupted: Interrupted) -> None:
    assert interrupted.first.status == 130, interrupted.first.err
    assert interrupted.first.err == ""
    *_, counts, report, command = nonempty_lines(interrupted.first.out)
    assert re.fullmatch(
        r"interrupted: \d runs? done; the same command will resume \d runs? from the last epoch", counts
    )
    assert report == f"report   {interrupted.folder}/reports/{interrupted.sweep.folder.name}/report.html"
    assert Path(report.removeprefix("report   ")).exists()
    assert command == f"next     {interrupted.sweep.plan['provenance']['command']}"


@pytest.mark.nightly
def test_ctrl_c_leaves_no_temporary_files(interrupted: Interrupted) -> None:
    assert not Path(tempfile.gettempdir(), f"xfer-{interrupted.driver}").exists()


@pytest.mark.nightly
def test_ctrl_c_releases_the_lease(interrupted: Interrupted) -> None:
    assert "plan.json" in interrupted.file_sizes_after_first
    assert "lease.json" not in interrupted.file_sizes_after_first


@pytest.mark.nightly
def test_a_second_sigterm_ends_the_sweep_within_five_seconds(interrupted: Interrupted) -> None:
    assert interrupted.terminated.status == 130
    assert interrupted.seconds_to_end < 5


@pytest.mark.nightly
def test_a_trial_whose_process_is_killed_resumes_from_its_last_epoch_and_all_finish(interrupted: Interrupted) -> None:
    assert interrupted.last.status == 0, interrupted.last.out + interrupted.last.err
    records = interrupted.sweep.records()
    assert {record["status"] for record in records.values()} == {"finished"}
    assert interrupted.lost.epoch - 1 in records[interrupted.lost.trial]["resumed_at"]
    notes = [
        note
        for note in started_epochs(interrupted.observer)[interrupted.epochs_before_last :]
        if note.trial == interrupted.lost.trial
    ]
    assert len({note.pid for note in notes}) == 2
    again = [note.epoch for note in notes]
    assert sorted(set(again)) == list(range(again[0], EPOCHS + 1))
    assert len(again) - len(set(again)) <= 1


@pytest.mark.nightly
def test_only_the_trial_whose_process_is_killed_repeats_an_epoch(interrupted: Interrupted) -> None:
    notes = started_epochs(interrupted.observer)[interrupted.epochs_before_last :]
    counts = Counter((note.trial, note.epoch) for note in notes)
    assert {trial for (trial, _), count in counts.items() if count > 1} <= {interrupted.lost.trial}


@pytest.mark.nightly
def test_the_records_of_an_interrupted_sweep_equal_those_of_an_undisturbed_one(
    interrupted: Interrupted, undisturbed: Story
) -> None:
    assert find_faults(interrupted.sweep.folder) == []
    mine, theirs = interrupted.sweep.records(), undisturbed.sweep.records()
    assert {name: without_timings(each) for name, each in mine.items()} == {
        name: without_timings(each) for name, each in theirs.items()
    }


def _names(notes: list[StartedEpoch]) -> list[str]:
    return sorted({note.trial for note in notes})
