"""Sweeps that are killed, interrupted, contested and damaged, and given again: nothing is lost and nothing done twice.

Each test looks at a story that a fixture played through once, with real processes and a real Ray cluster.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.check_resume import find_faults
from tests.sweep_commands import (
    Command,
    CompletedCommand,
    StartedEpoch,
    SweepFolder,
    build_once,
    install_observer,
    only_sweep,
    run,
    started_epochs,
    without_timings,
)

pytestmark = pytest.mark.slow

TRIALS, EPOCHS, SEEDS = 4, 5, 2
PACE = 0.8
"""Seconds that are added to each epoch, so that a trial can be caught half-way on any machine."""


@pytest.fixture(scope="session")
def flags(image_folder: Path, weights: Path) -> list[str]:
    """A sweep whose trials do not depend on each other: what each comes to is settled before it starts."""
    return [
        *("--data", str(image_folder), "--backbone", "test_efficientnet", "--weights", str(weights)),
        *("--image-size", "32", "--trials", str(TRIALS), "--epochs", str(EPOCHS), "--fix", "batch_size=4"),
        *("--sampler", "random", "--scheduler", "none", "--finalists", "1", "--seeds", str(SEEDS)),
        *("--concurrent", "2"),
    ]


@dataclass(frozen=True)
class Story:
    """A folder in which a sweep was played through."""

    folder: Path

    @property
    def storage(self) -> Path:
        """Where the sweep is."""
        return self.folder / "runs"

    @property
    def left(self) -> SweepFolder:
        """The sweep."""
        return only_sweep(self.storage)

    @property
    def observer(self) -> Path:
        """What saw its epochs."""
        return self.folder / "observer"

    def start(self, flags: list[str], pace: float = PACE) -> Command:
        """The command, once more."""
        places = ["--storage", self.storage, "--reports", self.folder / "reports"]
        return Command("folder", [*flags, *places], self.folder / "logs", self.observer, seconds_per_epoch=pace)

    def unfinished_trials(self, command: Command, phase: str = "", min_epochs: int = 1) -> str:
        """Wait for a trial that has so many epochs and no record; its name."""

        def seen() -> list[str]:
            if not list(self.storage.glob("*/plan.json")):
                return []
            return [name for name in self.left.unfinished_trials(min_epochs) if phase in name]

        found: list[str] = command.wait_until(seen, "a trial was half-way")
        return found[0]


@dataclass(frozen=True)
class Killed(Story):
    """What could be seen when the driver was killed, and how it ended."""

    running: tuple[frozenset[str], ...]
    """For each kill the trials that had been begun and had no record."""
    written: tuple[dict[str, int], ...]
    """For each kill when each object had been written."""
    seen: tuple[int, ...]
    """For each kill how many epochs had been begun."""
    damaged: str
    """The trial whose newest checkpoint was cut off after the second kill."""
    kept: tuple[int, int]
    """After how many epochs its two checkpoints had been saved; the second is the damaged one."""
    ended: CompletedCommand


@pytest.fixture(scope="module")
def undisturbed(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Story:
    """The same sweep, left in peace."""

    def make(folder: Path) -> None:
        install_observer(folder / "observer")
        ended = Story(folder).start(flags, pace=0.0).end()
        assert ended.status == 0, ended.out + ended.err

    return Story(build_once(tmp_path_factory, "undisturbed", make))


@pytest.fixture(scope="module")
def killed(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Killed in the search, given again, killed in the finals, a checkpoint cut off, given again."""
    story = Story(tmp_path_factory.mktemp("killed"))
    install_observer(story.observer)
    running, written, seen = [], [], []
    for phase, least in (("", 1), ("-s", 2)):
        command = story.start(flags)
        story.unfinished_trials(command, phase, least)
        command.signal(signal.SIGKILL)
        command.process.wait()
        command.clear()
        left = story.left
        running.append(frozenset(left.trials()) - left.records().keys())
        written.append(left.times())
        seen.append(len(started_epochs(story.observer)))
    damaged = next(name for name in story.left.unfinished_trials(2) if len(story.left.checkpoints(name)) == 2)
    before, newest = story.left.checkpoints(damaged)
    os.truncate(newest, newest.stat().st_size // 2)
    kept = (int(before.name.split("-")[1]), int(newest.name.split("-")[1]))
    ended = story.start(flags, pace=0.0).end()
    return Killed(story.folder, tuple(running), tuple(written), tuple(seen), damaged, kept, ended)


@dataclass(frozen=True)
class Interrupted(Story):
    """How the commands of a sweep ended that was contested, interrupted twice, and lost a process at last."""

    driver: int
    """The process that the second driver met."""
    second: CompletedCommand
    still_ran: bool
    """Whether the first driver ran on meanwhile."""
    first: CompletedCommand
    left_after_first: dict[str, int]
    terminated: CompletedCommand
    seconds_to_end: float
    """From the second signal to the end."""
    lost: StartedEpoch
    """What the process that was killed was training."""
    seen: int
    """How many epochs had been begun before the last start."""
    last: CompletedCommand


@pytest.fixture(scope="module")
def interrupted(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    story = Story(tmp_path_factory.mktemp("interrupted"))
    install_observer(story.observer)

    command = story.start(flags, pace=6.0)
    story.unfinished_trials(command)
    places = ["--storage", story.storage, "--reports", story.folder / "reports"]
    second = run("folder", [*flags, *places], story.folder / "logs")
    still_ran = command.is_running()
    story.unfinished_trials(command)
    command.signal(signal.SIGINT)
    first, driver = command.end(), command.process.pid
    left_after_first = {path.name: path.stat().st_size for path in story.left.folder.iterdir()}

    seen = len(started_epochs(story.observer))
    command = story.start(flags)
    command.wait_until(lambda: len(started_epochs(story.observer)) > seen + 2, "epochs were trained again")
    os.kill(command.process.pid, signal.SIGTERM)
    time.sleep(0.5)
    at = time.monotonic()
    if command.is_running():
        os.kill(command.process.pid, signal.SIGTERM)
    command.process.wait(60)
    seconds_to_end = time.monotonic() - at
    terminated = command.end()

    seen = len(started_epochs(story.observer))
    command = story.start(flags)

    def training() -> list[StartedEpoch]:
        """What is being trained now, with at least one epoch saved in this start."""
        notes = started_epochs(story.observer)[seen:]
        newest = {note.pid: note for note in notes}
        ended = story.left.records()
        counts = Counter(note.trial for note in notes)
        return [note for note in newest.values() if counts[note.trial] > 1 and note.trial not in ended]

    lost: StartedEpoch = command.wait_until(training, "a trial trained its second epoch")[0]
    assert command.process.pid in _ancestors(lost.pid)
    os.kill(lost.pid, signal.SIGKILL)
    last = command.end()
    return Interrupted(
        story.folder, driver, second, still_ran, first, left_after_first, terminated, seconds_to_end, lost, seen, last
    )


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


# --- killed -----------------------------------------------------------------------------------------------------------


def test_a_sweep_that_is_killed_and_given_again_comes_to_its_end(killed: Killed) -> None:
    assert killed.ended.status == 0, killed.ended.out + killed.ended.err
    assert "search:" not in killed.ended.out  # the search was over, and only the finals went on
    assert len(list((killed.folder / "reports").glob("*/report.html"))) == 1


def test_every_trial_is_there_once_with_consecutive_epochs_and_one_record(killed: Killed) -> None:
    assert find_faults(killed.left.folder) == []


def test_it_was_killed_with_trials_half_way(killed: Killed) -> None:
    assert all(1 <= len(running) <= 2 for running in killed.running)
    assert not any("-s" in name for name in killed.running[0])
    assert all("-s" in name for name in killed.running[1])


def test_trials_that_ran_when_it_was_killed_went_on_from_their_last_epoch(killed: Killed) -> None:
    for running, written in zip(killed.running, killed.written, strict=True):
        for name in running - {killed.damaged}:
            epochs = sum(path.startswith(f"trials/{name}/epochs/") for path in written)
            resumed = killed.left.records()[name]["resumed_at"]
            # A kill may fall between a checkpoint and the note of its epoch, never the other way round.
            assert resumed in ([], [1]) if epochs == 0 else resumed in ([epochs], [epochs + 1])


def test_trials_that_did_not_run_when_it_was_killed_know_nothing_of_it(killed: Killed) -> None:
    disturbed = frozenset().union(*killed.running)
    resumed = {name for name, record in killed.left.records().items() if record["resumed_at"]}
    assert resumed <= disturbed


def test_nothing_that_was_written_before_a_kill_is_written_again(killed: Killed) -> None:
    after = killed.left.times()
    for written in killed.written:
        objects = {path: at for path, at in written.items() if path.endswith(".json")}
        assert objects
        assert {path: after.get(path) for path in objects} == objects


def test_a_kill_costs_each_running_trial_one_epoch_at_most(killed: Killed, undisturbed: Story) -> None:
    searched = undisturbed.left.records("search").values()
    beside = sum(record["recipe"]["strategy"]["name"] == "linear_probe" for record in searched)  # heads, not by a Run
    assert len(started_epochs(undisturbed.observer)) == (TRIALS - beside + SEEDS) * EPOCHS
    notes = started_epochs(killed.observer)
    again = Counter((note.trial, note.epoch) for note in notes)
    lost = Counter(trial for trial, epoch in again.elements()) - Counter(dict.fromkeys(_names(notes), EPOCHS))
    assert lost.keys() <= killed.running[0] | killed.running[1]
    lost[killed.damaged] -= 1  # its damaged checkpoint's
    assert all(count <= 1 for count in lost.values())
    assert len(notes) <= len(started_epochs(undisturbed.observer)) + sum(map(len, killed.running)) + 1


def test_every_record_is_that_of_an_undisturbed_sweep(killed: Killed, undisturbed: Story) -> None:
    mine, theirs = killed.left.records(), undisturbed.left.records()
    assert mine.keys() == theirs.keys()
    for name, record in mine.items():
        assert without_timings(record) == without_timings(theirs[name]), name
    for name in undisturbed.left.trials("final"):
        assert killed.left.read("trials", name, "test.json") == undisturbed.left.read("trials", name, "test.json")


def test_finals_and_test_part_are_decided_once(killed: Killed, undisturbed: Story) -> None:
    for kind in ("finals", "openings"):
        (mine,), (theirs,) = ((list((story.left.folder / kind).iterdir())) for story in (killed, undisturbed))
        assert mine.name == theirs.name == "0001.json"
        assert killed.left.read(kind, mine.name)["finalists"] == undisturbed.left.read(kind, mine.name)["finalists"]


def test_mlflow_has_every_epoch_of_a_killed_sweep_once(killed: Killed, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    shutil.copy(killed.storage / "mlflow.db", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = (each for each in client.search_experiments() if each.name != "Default")
    runs = {each.data.tags.get("xfer.trial", "parent"): each for each in client.search_runs([experiment.experiment_id])}
    assert len(client.search_runs([experiment.experiment_id])) == len(runs) == TRIALS + SEEDS + 1
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    for name in killed.left.trials():
        history = client.get_metric_history(runs[name].info.run_id, "val_accuracy")
        assert sorted(metric.step for metric in history) == list(range(1, EPOCHS + 1))


def test_a_truncated_checkpoint_is_noticed_and_the_one_before_it_is_used(killed: Killed) -> None:
    assert killed.kept[1] == killed.kept[0] + 1
    assert killed.left.records()[killed.damaged]["resumed_at"] == [killed.kept[0]]


def test_a_truncated_checkpoint_is_named_in_the_log(killed: Killed) -> None:
    said = "".join(path.read_text() for path in (killed.left.folder / "logs").iterdir())
    assert f"trials/{killed.damaged}/checkpoints/epoch-{killed.kept[1]:04d}" in said
    assert "is damaged: going back to the one before it" in said


# --- contested, interrupted, a process lost ---------------------------------------------------------------------------


def test_a_second_driver_is_refused_and_told_which_process_is_at_work(interrupted: Interrupted) -> None:
    assert interrupted.second.status == 2
    assert interrupted.second.err.startswith("error: another driver is at work on folder-colours-")
    assert f"process {interrupted.driver} on " in interrupted.second.err
    assert "Traceback" not in interrupted.second.err
    assert interrupted.still_ran


def test_ctrl_c_ends_with_status_130_and_one_line_on_how_to_go_on(interrupted: Interrupted) -> None:
    assert interrupted.first.status == 130, interrupted.first.err
    assert interrupted.first.err == ""
    said = " ".join(interrupted.first.out.split())
    assert said.count("interrupted:") == 1
    assert said.endswith("runs from their last epoch")


def test_ctrl_c_leaves_no_lease_behind(interrupted: Interrupted) -> None:
    assert "plan.json" in interrupted.left_after_first
    assert "lease.json" not in interrupted.left_after_first


def test_a_second_signal_ends_it_within_five_seconds(interrupted: Interrupted) -> None:
    assert interrupted.terminated.status == 130
    assert interrupted.seconds_to_end < 5


def test_a_trial_whose_process_is_killed_goes_on_from_its_last_epoch_and_all_finish(interrupted: Interrupted) -> None:
    assert interrupted.last.status == 0, interrupted.last.out + interrupted.last.err
    records = interrupted.left.records()
    assert {record["status"] for record in records.values()} == {"finished"}
    assert interrupted.lost.epoch - 1 in records[interrupted.lost.trial]["resumed_at"]
    notes = [
        note
        for note in started_epochs(interrupted.observer)[interrupted.seen :]
        if note.trial == interrupted.lost.trial
    ]
    assert len({note.pid for note in notes}) == 2
    again = [note.epoch for note in notes]
    assert sorted(set(again)) == list(range(again[0], EPOCHS + 1))
    assert len(again) - len(set(again)) <= 1


def test_only_the_trial_whose_process_is_killed_goes_back(interrupted: Interrupted) -> None:
    notes = started_epochs(interrupted.observer)[interrupted.seen :]
    counts = Counter((note.trial, note.epoch) for note in notes)
    assert {trial for (trial, _), count in counts.items() if count > 1} <= {interrupted.lost.trial}


def test_an_interrupted_sweep_comes_to_the_same_as_an_undisturbed_one(
    interrupted: Interrupted, undisturbed: Story
) -> None:
    assert find_faults(interrupted.left.folder) == []
    mine, theirs = interrupted.left.records(), undisturbed.left.records()
    assert {name: without_timings(each) for name, each in mine.items()} == {
        name: without_timings(each) for name, each in theirs.items()
    }


def _names(notes: list[StartedEpoch]) -> list[str]:
    return sorted({note.trial for note in notes})
