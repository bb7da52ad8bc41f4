"""The watchdog's rule, with processes that say what the test says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from sweeps.engine.trials.trainable import report_to_tune
from sweeps.engine.trials.watchdog import (
    HANG_SECONDS,
    LOOK_SECONDS,
    SLOWEST_STEPS,
    START_FACTOR,
    Beat,
    Watchdog,
    parse_hang_seconds,
)
from tests.engine.conftest import a_record
from xfer.devices import heartbeat

BEAT = Beat(
    work="trial 0001",
    node="n",
    host="here",
    pid=7,
    file=3,
    inode=1,
    sent=1,
    steps=1,
    slowest_seconds=0.1,
    is_waiting=False,
)


class Processes:
    """Processes that were not started."""

    def __init__(self) -> None:
        self.now: dict[str, Beat] = {}
        self.ended: list[str] = []
        self.has_ended_by_itself = False
        self.given_up: dict[str, str] = {}

    def beats(self) -> Mapping[str, Beat]:
        return self.now

    def end(self, key: str, beat: Beat) -> str | None:
        del self.now[key]
        self.ended.append(key)
        return None if self.has_ended_by_itself else "was stopped"

    def give_up(self, work: str, reason: str) -> None:
        self.given_up[work] = reason


@pytest.fixture
def processes() -> Processes:
    return Processes()


class Clock:
    """Looks at the processes again and again."""

    def __init__(self, processes: Processes) -> None:
        self.lines: list[str] = []
        self._watchdog = Watchdog(processes, self.lines.append)
        self._now = 1000.0
        self._watchdog.look(self._now)

    def look_for(self, seconds: float, step: float = LOOK_SECONDS) -> None:
        end = self._now + seconds
        while self._now < end:
            self._now += step
            self._watchdog.look(self._now)


@pytest.fixture
def clock(processes: Processes) -> Clock:
    processes.now["a"] = BEAT
    return Clock(processes)


def test_a_process_without_a_step_is_ended_after_the_limit_and_not_before(processes: Processes, clock: Clock) -> None:
    clock.look_for(HANG_SECONDS - LOOK_SECONDS)
    assert processes.ended == []
    clock.look_for(2 * LOOK_SECONDS)
    assert processes.ended == ["a"]
    assert processes.given_up == {}
    assert "trial 0001 made no progress for" in clock.lines[0]
    assert "process 7 on here was stopped" in clock.lines[0]


def test_a_step_starts_the_time_again(processes: Processes, clock: Clock) -> None:
    for steps in range(2, 5):
        clock.look_for(HANG_SECONDS - 2 * LOOK_SECONDS)
        processes.now["a"] = replace(BEAT, steps=steps)
    assert processes.ended == []


def test_a_slow_process_gets_a_multiple_of_its_slowest_step(processes: Processes, clock: Clock) -> None:
    slow = 2 * HANG_SECONDS / SLOWEST_STEPS
    processes.now["a"] = replace(BEAT, slowest_seconds=slow)
    clock.look_for(2 * HANG_SECONDS - 2 * LOOK_SECONDS)
    assert processes.ended == []
    clock.look_for(4 * LOOK_SECONDS)
    assert processes.ended == ["a"]


def test_before_its_first_step_a_process_gets_longer(processes: Processes, clock: Clock) -> None:
    processes.now["a"] = replace(BEAT, steps=0)
    clock.look_for(START_FACTOR * HANG_SECONDS - 2 * LOOK_SECONDS)
    assert processes.ended == []
    clock.look_for(4 * LOOK_SECONDS)
    assert processes.ended == ["a"]


def test_a_process_that_waits_for_the_driver_hangs_only_if_it_says_nothing(processes: Processes, clock: Clock) -> None:
    for sent in range(2, 300):
        processes.now["a"] = replace(BEAT, is_waiting=True, sent=sent)
        clock.look_for(LOOK_SECONDS)
    assert processes.ended == []
    clock.look_for(HANG_SECONDS + 2 * LOOK_SECONDS)
    assert processes.ended == ["a"]


def test_a_driver_that_was_stopped_itself_does_not_count_that_time(processes: Processes, clock: Clock) -> None:
    clock.look_for(100 * HANG_SECONDS, step=100 * HANG_SECONDS)
    assert processes.ended == []


def test_work_that_hangs_twice_is_given_up_before_its_process_is_ended(processes: Processes, clock: Clock) -> None:
    clock.look_for(HANG_SECONDS + LOOK_SECONDS)
    processes.now["b"] = BEAT
    clock.look_for(HANG_SECONDS + 3 * LOOK_SECONDS)
    assert processes.ended == ["a", "b"]
    assert processes.given_up["trial 0001"].endswith(" s, 2 times; the last time was stopped")


def test_a_process_that_ended_meanwhile_does_not_count(processes: Processes, clock: Clock) -> None:
    processes.has_ended_by_itself = True
    for key in "abc":
        processes.now[key] = BEAT
        clock.look_for(HANG_SECONDS + 3 * LOOK_SECONDS)
    assert (processes.ended, clock.lines) == (["a", "b", "c"], [])
    assert not any(processes.given_up.values())


def test_a_trial_that_reports_waits_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr("ray.tune.report", lambda metrics: waited.append(heartbeat.current().is_waiting))
    report_to_tune(a_record("0000"))
    assert (waited, heartbeat.current().is_waiting) == ([True], False)


@pytest.mark.parametrize("text", ["abc", "0", "-5", "nan", "inf"])
def test_a_limit_that_is_not_a_number_above_zero_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"XFER_HANG_SECONDS={text}: must be a number of seconds above 0"):
        parse_hang_seconds(text)


def test_without_a_limit_of_the_user_it_is_ten_minutes() -> None:
    assert (parse_hang_seconds(""), parse_hang_seconds("90")) == (600.0, 90.0)
