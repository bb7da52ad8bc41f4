"""A stage: what the driver makes of what trials say, and what a person sees of it."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.schedulers import LearningCurve, TrialHistory
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials.stage import Stage, trial_history
from sweeps.engine.trials.trainable import TrialContext
from tests.engine.conftest import EPOCHS, a_recipe, a_record, an_epoch
from xfer.recipe import recipe_from_dict
from xfer.records import Record, as_dict

NAMES = ("0000", "0001", "0002")


class Sweep:
    """A stage with everything around it, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "colours")
        self.screen = io.StringIO()
        self.watch = ProgressView(Console(file=self.screen, width=120), "colours")
        self.learned: list[Record] = []
        self.judged: list[tuple[dict[str, list[float]], str]] = []
        self.stop: set[tuple[str, int]] = set()
        self.time_is_up = False
        self.handed_out: list[str] = []
        self.watch.begin("search", len(NAMES))
        self.stage = self.start()

    def start(self, expected_trials: Sequence[str] = ()) -> Stage:
        history = {name: LearningCurve(()) for name in expected_trials} | trial_history(self.store)
        return Stage(
            self.store,
            self.watch,
            self.trials(),
            self.site,
            self.judge,
            self.learned.append,
            self.over,
            history=history,
        )

    def trials(self) -> Iterator[Trial]:
        for name in NAMES:
            self.handed_out.append(name)
            trial = Trial(name, "search", {"strategy": "naive"}, a_recipe())
            self.store.add_trial(trial)
            yield trial

    def site(self, trial: Trial) -> TrialContext:
        return TrialContext(str(self.store.folder), "pack", None, 1, 0.0)

    def judge(self, history: TrialHistory, trial: str) -> bool | None:
        self.judged.append(({name: list(progress.values) for name, progress in history.items()}, trial))
        return (trial, len(history[trial].values)) not in self.stop

    def over(self) -> bool:
        return self.time_is_up

    def reports(self, trial: str, *curve: float) -> bool:
        """A trial's process has written an epoch down, and says what it has come to."""
        self.store.add_epoch(trial, an_epoch(len(curve), curve[-1]))
        status: Any = "finished" if len(curve) == EPOCHS else "pruned"
        return self.stage.should_continue(trial, as_dict(a_record(trial, curve, status)))

    def finishes(self, trial: str, *curve: float) -> None:
        for length in range(1, len(curve) + 1):
            assert self.reports(trial, *curve[:length])
        self.store.add_record(a_record(trial, curve))
        self.stage.ended(trial, None)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def test_trials_are_handed_out_one_at_a_time_with_all_that_their_process_needs(sweep: Sweep) -> None:
    config = sweep.stage.next_trial()
    assert config is not None
    assert (config["trial"], config["phase"], config["recipe"]) == ("0000", "search", a_recipe())
    assert config["site"]["sweep"] == str(sweep.store.folder)
    assert sweep.handed_out == ["0000"]
    assert sweep.stage.next_trial() is not None
    assert sweep.stage.next_trial() is not None
    assert sweep.stage.next_trial() is None


def test_a_finished_trials_record_is_the_one_in_the_store(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.finishes("0000", 0.2, 0.4, 0.6, 0.8)
    assert sweep.learned == [a_record("0000")] == sweep.store.records()
    assert sweep.watch.ended == Counter(finished=1)
    assert sweep.watch.running == {}
    assert sweep.watch.best == (0.8, "0000", "naive")


def test_after_its_last_epoch_a_trial_is_not_judged(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.stop = {("0000", EPOCHS)}
    sweep.finishes("0000", 0.2, 0.4, 0.6, 0.8)
    assert [record.status for record in sweep.learned] == ["finished"]
    assert len(sweep.judged) == EPOCHS - 1


def test_a_trial_that_the_judge_stops_ends_as_pruned_with_its_epochs(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.stop = {("0000", 2)}
    assert sweep.reports("0000", 0.2)
    assert not sweep.reports("0000", 0.2, 0.3)
    sweep.stage.ended("0000", None)
    (record,) = sweep.store.records()
    assert (record.status, [epoch.val_accuracy for epoch in record.epochs]) == ("pruned", [0.2, 0.3])
    assert sweep.learned == [record]
    assert sweep.watch.ended == Counter(pruned=1)
    assert sweep.watch.best is None


def test_the_judge_sees_every_trial_of_the_search_up_to_its_newest_epoch(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.stage.next_trial()
    sweep.reports("0000", 0.2)
    sweep.reports("0001", 0.5)
    sweep.reports("0000", 0.2, 0.4)
    assert sweep.judged[-1] == ({"0000": [0.2, 0.4], "0001": [0.5]}, "0000")


def test_a_new_start_judges_by_what_earlier_ones_stored(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.finishes("0000", 0.2, 0.4, 0.6, 0.8)
    sweep.stage.next_trial()
    sweep.reports("0001", 0.5)
    sweep.stage = sweep.start()
    sweep.stage.next_trial()
    sweep.stage.next_trial()
    sweep.reports("0001", 0.5)
    assert sweep.judged[-1] == ({"0000": [0.2, 0.4, 0.6, 0.8], "0001": [0.5]}, "0001")


def test_history_knows_what_was_frozen_and_leaves_finals_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "colours")
    store.add_trial(Trial("0000", "search", {}, a_recipe("freeze_then_unfreeze")))
    store.add_trial(Trial("0000-s1", "final", {}, a_recipe()))
    for name in ("0000", "0000-s1"):
        store.add_epoch(name, an_epoch(1, 0.5))
    history = trial_history(store)
    assert set(history) == {"0000"}
    assert history["0000"].last_unfreeze_epoch == 2


# --- trials that wait for others --------------------------------------------------------------------------------------


def top_one(history: TrialHistory, trial: str) -> bool | None:
    """After the first epoch everybody waits for everybody, and the best goes on."""
    if not all(progress.is_comparable for progress in history.values()):
        return None
    return trial == max(history, key=lambda name: history[name].first or 0.0)


@pytest.fixture
def waiting(sweep: Sweep) -> Sweep:
    """The first two of three trials have had their epoch."""
    sweep.judge = top_one  # type: ignore[method-assign]
    sweep.stage = sweep.start(expected_trials=NAMES)
    for name, value in (("0000", 0.5), ("0001", 0.8)):
        sweep.stage.next_trial()
        assert not sweep.reports(name, value)
        sweep.stage.ended(name, None)
    return sweep


def test_a_trial_that_waits_has_no_record_and_keeps_its_checkpoint(waiting: Sweep) -> None:
    assert waiting.store.records() == waiting.learned == []
    assert waiting.watch.running == {}
    assert waiting.watch.ended.total() == 0


def test_while_others_run_the_stage_waits_for_them_and_not_otherwise(waiting: Sweep) -> None:
    assert not waiting.stage.may_have_more()
    assert waiting.stage.next_trial()["trial"] == "0002"  # type: ignore[index]
    assert waiting.stage.next_trial() is None
    assert waiting.stage.may_have_more()
    waiting.time_is_up = True
    assert not waiting.stage.may_have_more()


def test_once_all_have_come_as_far_the_best_is_handed_out_again_and_the_others_end_as_pruned(waiting: Sweep) -> None:
    waiting.stage.next_trial()
    assert not waiting.reports("0002", 0.6)
    waiting.stage.ended("0002", None)
    again = waiting.stage.next_trial()
    assert again is not None
    assert again["trial"] == "0001"
    assert waiting.stage.next_trial() is None
    assert not waiting.stage.may_have_more()
    assert [(record.trial, record.status) for record in waiting.learned] == [("0002", "pruned"), ("0000", "pruned")]
    waiting.finishes("0001", 0.8, 0.8, 0.8, 0.9)
    assert [record.status for record in waiting.store.records()] == ["pruned", "finished", "pruned"]
    assert waiting.watch.ended == Counter(pruned=2, finished=1)


def test_the_last_to_come_goes_on_at_once_where_it_is_the_best(waiting: Sweep) -> None:
    waiting.stage.next_trial()
    waiting.finishes("0002", 0.9, 0.9, 0.9, 0.9)
    assert waiting.stage.next_trial() is None
    assert [record.status for record in waiting.store.records()] == ["pruned", "pruned", "finished"]


def test_nobody_waits_for_one_that_failed(waiting: Sweep) -> None:
    waiting.stage.next_trial()
    waiting.store.add_record(a_record("0002", (), "failed", error="lost", recipe=a_recipe()))
    waiting.stage.ended("0002", None)
    assert waiting.stage.next_trial()["trial"] == "0001"  # type: ignore[index]


def test_nor_for_one_that_never_comes(sweep: Sweep) -> None:
    sweep.judge = top_one  # type: ignore[method-assign]
    sweep.stage = sweep.start(expected_trials=(*NAMES, "0003", "0004"))
    for name, value in zip(NAMES, (0.5, 0.8, 0.6), strict=True):
        sweep.stage.next_trial()
        assert not sweep.reports(name, value)
        sweep.stage.ended(name, None)
    assert sweep.stage.next_trial()["trial"] == "0001"  # type: ignore[index]


def test_in_a_new_start_those_that_waited_wait_on_without_a_process(waiting: Sweep) -> None:
    waiting.stage = waiting.start(expected_trials=NAMES)
    assert waiting.stage.next_trial()["trial"] == "0002"  # type: ignore[index]
    assert waiting.stage.next_trial() is None
    waiting.reports("0002", 0.6)
    waiting.stage.ended("0002", None)
    # What the first came to is not in the store but in its checkpoint: a process looks there, and is stopped at once.
    assert waiting.stage.next_trial()["trial"] == "0000"  # type: ignore[index]
    assert not waiting.reports("0000", 0.5)
    waiting.stage.ended("0000", None)
    assert waiting.stage.next_trial()["trial"] == "0001"  # type: ignore[index]
    assert waiting.reports("0001", 0.8)
    assert waiting.stage.next_trial() is None
    assert [(record.trial, record.status) for record in waiting.store.records()] == [
        ("0000", "pruned"),
        ("0002", "pruned"),
    ]


# ----------------------------------------------------------------------------------------------------------------------


def test_a_lost_process_ends_its_trial_as_failed_with_the_reason(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.reports("0000", 0.2)
    sweep.stage.ended("0000", "its process was lost 4 times")
    (record,) = sweep.store.records()
    assert (record.status, record.error) == ("failed", "its process was lost 4 times")
    assert [epoch.val_accuracy for epoch in record.epochs] == [0.2]
    assert record.val is None
    assert sweep.learned == [record]
    assert sweep.watch.ended == Counter(failed=1)


def test_also_where_it_was_lost_before_its_first_word(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.stage.ended("0000", "its process was lost 4 times")
    (record,) = sweep.store.records()
    recipe = recipe_from_dict(a_recipe())
    assert (record.status, record.epochs, record.parameters) == ("failed", (), None)
    assert (record.key, record.id, record.recipe) == (recipe.key, recipe.id, a_recipe())


def test_a_process_lost_after_its_record_was_written_has_finished(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.store.add_record(a_record("0000"))
    sweep.stage.ended("0000", "its process was lost 4 times")
    assert [record.status for record in sweep.learned] == ["finished"]


def test_a_trial_that_failed_by_itself_has_its_own_record(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    own = a_record("0000", (0.2,), "failed", error="FloatingPointError: the loss is nan at step 3")
    sweep.store.add_record(own)
    sweep.stage.ended("0000", None)
    assert sweep.learned == [own]


def test_when_time_is_up_no_more_are_handed_out_and_what_runs_is_left_for_the_next_start(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    assert sweep.reports("0000", 0.2)
    sweep.time_is_up = True
    assert sweep.stage.next_trial() is None
    assert sweep.handed_out == ["0000"]
    assert not sweep.reports("0000", 0.2, 0.3)
    sweep.stage.ended("0000", None)
    assert sweep.store.records() == []
    assert sweep.learned == []
    assert sweep.watch.ended.total() == 0
    assert sweep.watch.running == {}
    assert [epoch.epoch for epoch in sweep.store.epochs("0000")] == [1, 2]


def test_a_trial_whose_last_epoch_comes_when_time_is_up_has_finished(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.time_is_up = True
    assert sweep.reports("0000", 0.2, 0.4, 0.6, 0.8)


def test_a_trial_that_never_said_anything_and_was_not_lost_goes_on_at_the_next_start(sweep: Sweep) -> None:
    sweep.stage.next_trial()
    sweep.stage.ended("0000", None)
    assert sweep.store.records() == []
    assert [trial.name for trial in sweep.store.trials()] == ["0000"]


# --- what a person watches -------------------------------------------------------------------------------------------


def watch(terminal: bool = False, name: str = "colours") -> tuple[ProgressView, io.StringIO]:
    screen = io.StringIO()
    return ProgressView(Console(file=screen, width=120, force_terminal=terminal), name), screen


def drawn(watch: ProgressView) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120).print(watch.render())
    return screen.getvalue()


def test_elsewhere_than_on_a_terminal_it_is_a_line_for_each_phase() -> None:
    watched, screen = watch()
    with watched:
        watched.begin("search", 3)
        for name in NAMES:
            watched.started(name, a_recipe())
            watched.on_epoch(as_dict(a_record(name, (0.5,), "pruned")))
            watched.on_trial_end(name, "finished", 0.5)
        watched.begin("finals", 6, Counter(finished=2))
    assert screen.getvalue().splitlines() == ["search: 3 runs", "finals: 6 runs, 2 already done"]


def test_where_a_price_is_known_each_phase_begins_with_what_has_been_spent() -> None:
    watched, screen = watch()
    watched.cost = lambda: "$3.20 of $20"
    watched.begin("search", 3)
    assert screen.getvalue() == "search: 3 runs, $3.20 of $20\n"


def test_elsewhere_than_on_a_terminal_it_says_how_far_it_is_when_it_has_said_nothing_for_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watched, screen = watch()
    watched.cost = lambda: "$3.20 of $20"
    watched.begin("search", 4)
    for name in NAMES:
        watched.started(name, a_recipe())
    watched.on_trial_end("0000", "finished", 0.5)
    for _ in range(3):
        now[0] += 100
        watched.on_epoch(as_dict(a_record("0001", (0.1, 0.2), "pruned")))
    now[0] += 299
    watched.on_epoch(as_dict(a_record("0001", (0.1, 0.2), "pruned")))
    assert screen.getvalue().splitlines() == [
        "search: 4 runs, $3.20 of $20",
        "search: 2 running · 1 finished of 4, 8 min 20 s left, $3.20 of $20",
    ]


def test_the_live_line_ends_with_what_has_been_spent() -> None:
    watched, _ = watch()
    watched.begin("search", 4)
    watched.cost = lambda: "$3.20 so far"
    assert drawn(watched).splitlines()[0].rstrip() == "colours  search  0 running  $3.20 so far"


def test_on_a_terminal_it_is_drawn_live_and_leaves_only_its_lines() -> None:
    watched, screen = watch(terminal=True)
    with watched:
        watched.begin("search", 3)
        watched.started("0000", a_recipe())
        assert watched._live is not None
    assert watched._live is None
    assert "search: 3 runs" in screen.getvalue()


def test_running_ended_and_best_are_counted() -> None:
    watched, _ = watch()
    watched.begin("search", 6, Counter(finished=1))
    for name in ("0001", "0002", "0003", "0004"):
        watched.started(name, a_recipe("clip" if name == "0002" else "naive"))
    watched.on_trial_end("0001", "finished", 0.5)
    watched.on_trial_end("0002", "finished", 0.75)
    watched.on_trial_end("0003", "pruned", 0.9)
    text = drawn(watched)
    assert "1 running · 3 finished · 1 stopped early" in text
    assert "best so far: 75.0% on validation, clip (trial 0002)" in text
    assert "epoch 0/4" in text


def test_an_interrupted_trial_is_neither_running_nor_ended() -> None:
    watched, _ = watch()
    watched.begin("search", 2)
    watched.started("0000", a_recipe())
    watched.on_trial_end("0000", None, None)
    assert watched.running == {}
    assert watched.ended.total() == 0


def test_of_many_running_trials_the_first_few_are_shown() -> None:
    watched, _ = watch()
    watched.begin("search", 99)
    for number in range(40):
        watched.started(f"{number:04d}", a_recipe())
    assert drawn(watched).count("epoch 0/4") == 8
    assert "40 running" in drawn(watched)


@pytest.mark.parametrize(
    ("inherited", "finished", "halfway", "elapsed", "left"),
    [
        (0, 2, 0, 100.0, 400.0),  # 2 of 10 took 100 s
        (4, 2, 0, 100.0, 200.0),  # those of an earlier start took none of this one's time
        (0, 1, 2, 100.0, 400.0),  # two that are half-way count as one
        (0, 0, 0, 100.0, None),
        (9, 1, 0, 100.0, 0.0),
    ],
)
def test_the_time_left_follows_from_this_phases_own_pace(
    monkeypatch: pytest.MonkeyPatch, inherited: int, finished: int, halfway: int, elapsed: float, left: float | None
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watched, _ = watch()
    watched.begin("search", 10, Counter(finished=inherited))
    now[0] += elapsed
    for number in range(finished):
        watched.started(f"{number}", a_recipe())
        watched.on_trial_end(f"{number}", "finished", 0.5)
    for number in range(halfway):
        watched.on_epoch(as_dict(a_record(f"half{number}", (0.1, 0.2), "pruned")))
    assert watched.seconds_left() == pytest.approx(left)


MARKUP = "[bold red]ants[/bold red] [link=file:///etc/passwd]x[/link] [/]"


@pytest.mark.parametrize("show", [lambda watched: watched.print_line(MARKUP), lambda watched: watched.begin(MARKUP, 1)])
def test_markup_in_what_is_said_is_not_interpreted(show: Callable[[ProgressView], None]) -> None:
    watched, screen = watch(terminal=True)
    show(watched)
    assert MARKUP in screen.getvalue()


def test_markup_in_a_sweeps_name_is_not_interpreted() -> None:
    watched, _ = watch(name="[red]colours[/red]")
    watched.begin("search", 1)
    assert "[red]colours[/red]" in drawn(watched)


def test_control_characters_in_what_is_said_do_not_reach_the_terminal() -> None:
    watched, screen = watch(terminal=True)
    watched.print_line("1 unreadable image: ants/\x1b]0;owned\x07\x1b[2J.jpg")
    assert "\x1b" not in screen.getvalue().replace("\x1b[0m", "")
    assert "\x07" not in screen.getvalue()
