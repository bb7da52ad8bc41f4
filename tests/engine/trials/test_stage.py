"""Stage: how reports of trials become decisions and records, and what the progress view shows of it."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sweeps.engine.console.progress import ProgressView
from sweeps.engine.schedulers import LearningCurve, TrialHistory
from sweeps.engine.storage.store import Store, Trial
from sweeps.engine.trials.machine_faults import MAX_FAULTS, final_reason
from sweeps.engine.trials.stage import Stage, trial_history
from sweeps.engine.trials.trainable import TrialContext
from tests.engine.conftest import EPOCHS, a_recipe, a_record, an_epoch
from xfer.recipe import recipe_from_dict
from xfer.records import Record, as_dict

NAMES = ("0000", "0001", "0002")
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
"""What a live view prints to the terminal when it starts and when it stops."""


class StageHarness:
    """A stage with a store, a view and a scripted stopping rule, which notes its calls."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "colours")
        self.screen = io.StringIO()
        self.view = ProgressView(Console(file=self.screen, width=120), "colours")
        self.learned: list[Record] = []
        self.decisions: list[tuple[dict[str, list[float]], str]] = []
        self.stop: set[tuple[str, int]] = set()
        self.budget_is_spent = False
        self.started: list[str] = []
        self.view.begin("search", len(NAMES))
        self.stage = self.start()

    def start(self, expected_trials: Sequence[str] = ()) -> Stage:
        history = {name: LearningCurve(()) for name in expected_trials} | trial_history(self.store)
        return Stage(
            self.store,
            self.view,
            self.trials(),
            self.context,
            self.stopping_rule,
            self.learned.append,
            self.out_of_budget,
            history=history,
        )

    def trials(self) -> Iterator[Trial]:
        for name in NAMES:
            self.started.append(name)
            trial = Trial(name, "search", {"strategy": "naive"}, a_recipe())
            self.store.add_trial(trial)
            yield trial

    def context(self, trial: Trial) -> TrialContext:
        return TrialContext(str(self.store.folder), "pack", None, 1, 0.0)

    def stopping_rule(self, history: TrialHistory, trial: str) -> bool | None:
        self.decisions.append(({name: list(curve.values) for name, curve in history.items()}, trial))
        return (trial, len(history[trial].values)) not in self.stop

    def out_of_budget(self) -> bool:
        return self.budget_is_spent

    def report(self, trial: str, *curve: float) -> bool:
        """Store an epoch and report it, as a trial's process does; return whether the trial continues."""
        self.store.add_epoch(trial, an_epoch(len(curve), curve[-1]))
        status: Any = "finished" if len(curve) == EPOCHS else "pruned"
        return self.stage.should_continue(trial, as_dict(a_record(trial, curve, status)))

    def finish(self, trial: str, *curve: float) -> None:
        for length in range(1, len(curve) + 1):
            assert self.report(trial, *curve[:length])
        self.store.add_record(a_record(trial, curve))
        self.stage.ended(trial, None)


@pytest.fixture
def sweep(tmp_path: Path) -> StageHarness:
    return StageHarness(tmp_path)


def test_trials_are_started_one_at_a_time_with_everything_their_process_needs(sweep: StageHarness) -> None:
    config = sweep.stage.next_trial()
    assert config is not None
    assert (config["trial"], config["phase"], config["recipe"]) == ("0000", "search", a_recipe())
    assert config["site"]["sweep"] == str(sweep.store.folder)
    assert sweep.started == ["0000"]
    assert sweep.stage.next_trial() is not None
    assert sweep.stage.next_trial() is not None
    assert sweep.stage.next_trial() is None


def test_the_record_of_a_finished_trial_is_the_one_in_the_store(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    sweep.finish("0000", 0.2, 0.4, 0.6, 0.8)
    assert sweep.learned == [a_record("0000")] == sweep.store.records()
    assert sweep.view.ended == Counter(finished=1)
    assert sweep.view.running == {}
    assert sweep.view.best == (0.8, "0000", "naive")


def test_a_trial_that_cannot_be_compiled_is_reported_once(sweep: StageHarness) -> None:
    reason = "InvalidCxxCompiler: No working C++ compiler found"
    for name in ("0000", "0001"):
        sweep.stage.next_trial()
        for length in (1, 2):
            record = replace(a_record(name, (0.2, 0.3)[:length]), arithmetic=f"float32, not compiled: {reason}")
            sweep.stage.should_continue(name, as_dict(record))
    text = " ".join(sweep.screen.getvalue().split())
    assert text.count(f"torch.compile has failed ({reason}); training continues without") == 1


def test_a_trial_is_not_stopped_after_its_last_epoch(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    sweep.stop = {("0000", EPOCHS)}
    sweep.finish("0000", 0.2, 0.4, 0.6, 0.8)
    assert [record.status for record in sweep.learned] == ["finished"]
    assert len(sweep.decisions) == EPOCHS - 1


def test_a_stopped_trial_ends_as_pruned_with_its_epochs(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    sweep.stop = {("0000", 2)}
    assert sweep.report("0000", 0.2)
    assert not sweep.report("0000", 0.2, 0.3)
    sweep.stage.ended("0000", None)
    (record,) = sweep.store.records()
    assert (record.status, [epoch.val_accuracy for epoch in record.epochs]) == ("pruned", [0.2, 0.3])
    assert sweep.learned == [record]
    assert sweep.view.ended == Counter(pruned=1)
    assert sweep.view.best is None


def test_the_stopping_rule_sees_every_search_trial_up_to_its_newest_epoch(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    sweep.stage.next_trial()
    sweep.report("0000", 0.2)
    sweep.report("0001", 0.5)
    sweep.report("0000", 0.2, 0.4)
    assert sweep.decisions[-1] == ({"0000": [0.2, 0.4], "0001": [0.5]}, "0000")


def test_a_resumed_sweep_decides_by_the_stored_epochs_of_earlier_starts(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    sweep.finish("0000", 0.2, 0.4, 0.6, 0.8)
    sweep.stage.next_trial()
    sweep.report("0001", 0.5)
    sweep.stage = sweep.start()
    sweep.stage.next_trial()
    sweep.stage.next_trial()
    sweep.report("0001", 0.5)
    assert sweep.decisions[-1] == ({"0000": [0.2, 0.4, 0.6, 0.8], "0001": [0.5]}, "0001")


def test_the_history_knows_the_last_unfreeze_epoch_and_excludes_finals(tmp_path: Path) -> None:
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
    """After the first epoch every trial waits for all others, and only the best continues."""
    if not all(curve.is_comparable for curve in history.values()):
        return None
    return trial == max(history, key=lambda name: history[name].first or 0.0)


@pytest.fixture
def waiting(sweep: StageHarness) -> StageHarness:
    """A stage in which the first two of three trials have trained their first epoch."""
    sweep.stopping_rule = top_one  # type: ignore[method-assign]
    sweep.stage = sweep.start(expected_trials=NAMES)
    for name, value in (("0000", 0.5), ("0001", 0.8)):
        sweep.stage.next_trial()
        assert not sweep.report(name, value)
        sweep.stage.ended(name, None)
    return sweep


def test_a_waiting_trial_has_no_record(waiting: StageHarness) -> None:
    assert waiting.store.records() == waiting.learned == []
    assert waiting.view.running == {}
    assert waiting.view.ended.total() == 0


def test_there_may_be_more_trials_only_while_others_run(waiting: StageHarness) -> None:
    assert not waiting.stage.may_have_more()
    assert waiting.stage.next_trial()["trial"] == "0002"  # type: ignore[index]
    assert waiting.stage.next_trial() is None
    assert waiting.stage.may_have_more()
    waiting.budget_is_spent = True
    assert not waiting.stage.may_have_more()


def test_once_all_trials_have_come_as_far_the_best_is_resumed_and_the_others_end_as_pruned(
    waiting: StageHarness,
) -> None:
    waiting.stage.next_trial()
    assert not waiting.report("0002", 0.6)
    waiting.stage.ended("0002", None)
    again = waiting.stage.next_trial()
    assert again is not None
    assert again["trial"] == "0001"
    assert waiting.stage.next_trial() is None
    assert not waiting.stage.may_have_more()
    assert [(record.trial, record.status) for record in waiting.learned] == [("0002", "pruned"), ("0000", "pruned")]
    waiting.finish("0001", 0.8, 0.8, 0.8, 0.9)
    assert [record.status for record in waiting.store.records()] == ["pruned", "finished", "pruned"]
    assert waiting.view.ended == Counter(pruned=2, finished=1)


def test_the_last_trial_continues_at_once_if_it_is_the_best(waiting: StageHarness) -> None:
    waiting.stage.next_trial()
    waiting.finish("0002", 0.9, 0.9, 0.9, 0.9)
    assert waiting.stage.next_trial() is None
    assert [record.status for record in waiting.store.records()] == ["pruned", "pruned", "finished"]


def test_no_trial_waits_for_one_that_failed(waiting: StageHarness) -> None:
    waiting.stage.next_trial()
    waiting.store.add_record(a_record("0002", (), "failed", error="lost", recipe=a_recipe()))
    waiting.stage.ended("0002", None)
    assert waiting.stage.next_trial()["trial"] == "0001"  # type: ignore[index]


def test_no_trial_waits_for_an_expected_one_that_never_starts(sweep: StageHarness) -> None:
    sweep.stopping_rule = top_one  # type: ignore[method-assign]
    sweep.stage = sweep.start(expected_trials=(*NAMES, "0003", "0004"))
    for name, value in zip(NAMES, (0.5, 0.8, 0.6), strict=True):
        sweep.stage.next_trial()
        assert not sweep.report(name, value)
        sweep.stage.ended(name, None)
    assert sweep.stage.next_trial()["trial"] == "0001"  # type: ignore[index]


def test_in_a_resumed_sweep_waiting_trials_keep_waiting_without_a_process(waiting: StageHarness) -> None:
    waiting.stage = waiting.start(expected_trials=NAMES)
    assert waiting.stage.next_trial()["trial"] == "0002"  # type: ignore[index]
    assert waiting.stage.next_trial() is None
    waiting.report("0002", 0.6)
    waiting.stage.ended("0002", None)
    # The record of the first trial is only in its checkpoint: a process reads it there, and is stopped at once.
    assert waiting.stage.next_trial()["trial"] == "0000"  # type: ignore[index]
    assert not waiting.report("0000", 0.5)
    waiting.stage.ended("0000", None)
    assert waiting.stage.next_trial()["trial"] == "0001"  # type: ignore[index]
    assert waiting.report("0001", 0.8)
    assert waiting.stage.next_trial() is None
    assert [(record.trial, record.status) for record in waiting.store.records()] == [
        ("0000", "pruned"),
        ("0002", "pruned"),
    ]


# ----------------------------------------------------------------------------------------------------------------------


def test_a_trial_whose_process_was_lost_ends_as_failed_with_the_reason(sweep: StageHarness) -> None:
    for _ in range(MAX_FAULTS - 1):
        sweep.store.add_fault("0000", "in an earlier start")
    sweep.stage.next_trial()
    sweep.report("0000", 0.2)
    sweep.stage.ended("0000", "its process was lost 4 times")
    (record,) = sweep.store.records()
    assert (record.status, record.error) == ("failed", final_reason("its process was lost 4 times"))
    assert [epoch.val_accuracy for epoch in record.epochs] == [0.2]
    assert record.val is None
    assert sweep.learned == [record]
    assert sweep.view.ended == Counter(failed=1)


def test_a_trial_whose_process_was_lost_before_its_first_report_ends_as_failed(sweep: StageHarness) -> None:
    for _ in range(MAX_FAULTS - 1):
        sweep.store.add_fault("0000", "in an earlier start")
    sweep.stage.next_trial()
    sweep.stage.ended("0000", "its process was lost 4 times")
    (record,) = sweep.store.records()
    recipe = recipe_from_dict(a_recipe())
    assert (record.status, record.epochs, record.parameters) == ("failed", (), None)
    assert (record.key, record.id, record.recipe) == (recipe.key, recipe.id, recipe.as_dict())


def test_a_trial_whose_process_was_lost_after_its_record_was_stored_has_finished(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    sweep.store.add_record(a_record("0000"))
    sweep.stage.ended("0000", "its process was lost 4 times")
    assert [record.status for record in sweep.learned] == ["finished"]


def test_a_trial_that_failed_keeps_the_record_that_its_process_has_stored(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    own = a_record("0000", (0.2,), "failed", error="FloatingPointError: the loss is nan at step 3")
    sweep.store.add_record(own)
    sweep.stage.ended("0000", None)
    assert sweep.learned == [own]


def test_out_of_budget_no_trial_is_started_and_running_ones_are_left_for_the_next_start(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    assert sweep.report("0000", 0.2)
    sweep.budget_is_spent = True
    assert sweep.stage.next_trial() is None
    assert sweep.started == ["0000"]
    assert not sweep.report("0000", 0.2, 0.3)
    sweep.stage.ended("0000", None)
    assert sweep.store.records() == []
    assert sweep.learned == []
    assert sweep.view.ended.total() == 0
    assert sweep.view.running == {}
    assert [epoch.epoch for epoch in sweep.store.epochs("0000")] == [1, 2]


def test_a_trial_whose_last_epoch_ends_out_of_budget_has_finished(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    sweep.budget_is_spent = True
    assert sweep.report("0000", 0.2, 0.4, 0.6, 0.8)


def test_a_trial_that_ended_without_a_report_or_an_error_is_resumed_by_the_next_start(sweep: StageHarness) -> None:
    sweep.stage.next_trial()
    sweep.stage.ended("0000", None)
    assert sweep.store.records() == []
    assert [trial.name for trial in sweep.store.trials()] == ["0000"]


# --- the progress view ------------------------------------------------------------------------------------------------


def make_view(terminal: bool = False, name: str = "colours") -> tuple[ProgressView, io.StringIO]:
    screen = io.StringIO()
    return ProgressView(Console(file=screen, width=120, force_terminal=terminal), name), screen


def drawn(view: ProgressView) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120).print(view.render())
    return screen.getvalue()


def test_without_a_terminal_one_line_is_printed_per_phase() -> None:
    view, screen = make_view()
    with view:
        view.begin("search", 3)
        for name in NAMES:
            view.started(name, a_recipe())
            view.on_epoch(as_dict(a_record(name, (0.5,), "pruned")))
            view.on_trial_end(name, "finished", 0.5)
        view.begin("finals", 6, Counter(finished=2))
    assert screen.getvalue().splitlines() == ["search: 3 runs", "finals: 6 runs, 2 already done"]


def test_with_a_known_price_each_phase_begins_with_the_cost_so_far() -> None:
    view, screen = make_view()
    view.cost = lambda: "$3.20 of $20"
    view.begin("search", 3)
    assert screen.getvalue() == "search: 3 runs, $3.20 of $20\n"


def test_without_a_terminal_the_progress_is_printed_after_minutes_of_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    view, screen = make_view()
    view.cost, view.time_left = lambda: "$3.20 of $20", lambda: "search 8 min · finals about 3 min · 11 min left"
    view.begin("search", 4)
    for name in NAMES:
        view.started(name, a_recipe())
    view.on_trial_end("0000", "finished", 0.5)
    for _ in range(3):
        now[0] += 100
        view.on_epoch(as_dict(a_record("0001", (0.1, 0.2), "pruned")))
    now[0] += 299
    view.on_epoch(as_dict(a_record("0001", (0.1, 0.2), "pruned")))
    assert screen.getvalue().splitlines() == [
        "search: 4 runs, $3.20 of $20",
        "search: 2 running · 1 finished of 4, search 8 min · finals about 3 min · 11 min left, $3.20 of $20",
        "best so far: 50.0% on validation, naive (full fine-tuning) in trial 0000",
    ]


def test_an_evaluation_says_what_it_does_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    view, screen = make_view()
    view.time_left = lambda: "noise 2 min left"
    view.begin_evaluation("noise", "noise: 9 runs on 500 of 900 test images", 63, 21)
    for done in (28, 35):
        now[0] += 20
        view.evaluated(done)
    assert screen.getvalue().splitlines() == [
        "noise: 9 runs on 500 of 900 test images, 21 of 63 are done, noise 2 min left",
        "noise: 35 evaluated of 63, noise 2 min left",
    ]
    assert view.seconds_left() == pytest.approx((63 - 35) * 40 / (35 - 21))
    assert "35 evaluated" in drawn(view)
    assert "running" not in drawn(view)


def test_the_live_line_ends_with_the_cost_so_far() -> None:
    view, _ = make_view()
    view.begin("search", 4)
    view.cost = lambda: "$3.20 so far"
    assert drawn(view).splitlines()[0].rstrip() == "colours  search  0 running  $3.20 so far"


def test_the_live_view_shows_the_time_left_of_every_stage() -> None:
    view, _ = make_view()
    view.begin("search", 4)
    view.time_left = lambda: "search 2 min · finals about 13 min · test about 1 min · 16 min left"
    assert "search 2 min · finals about 13 min · test about 1 min · 16 min left" in drawn(view).splitlines()


def test_on_a_terminal_the_view_is_live_and_only_its_lines_stay() -> None:
    view, screen = make_view(terminal=True)
    with view:
        view.begin("search", 3)
        view.started("0000", a_recipe())
        assert HIDE_CURSOR in screen.getvalue()
        assert SHOW_CURSOR not in screen.getvalue()
    assert SHOW_CURSOR in screen.getvalue()
    assert "search: 3 runs" in screen.getvalue()


def test_running_and_ended_trials_are_counted_and_the_best_is_shown() -> None:
    view, _ = make_view()
    view.begin("search", 6, Counter(finished=1))
    for name in ("0001", "0002", "0003", "0004"):
        view.started(name, a_recipe("clip" if name == "0002" else "naive"))
    view.on_trial_end("0001", "finished", 0.5)
    view.on_trial_end("0002", "finished", 0.75)
    view.on_trial_end("0003", "pruned", 0.9)
    text = drawn(view)
    assert "1 running · 3 finished · 1 stopped early" in text
    assert "best so far: 75.0% on validation, clip (full fine-tuning, gradients clipped) in trial 0002" in text
    assert "epoch 0/4" in text


def test_an_interrupted_trial_is_neither_running_nor_ended() -> None:
    view, _ = make_view()
    view.begin("search", 2)
    view.started("0000", a_recipe())
    view.on_trial_end("0000", None, None)
    assert view.running == {}
    assert view.ended.total() == 0


def test_only_the_first_few_running_trials_are_shown() -> None:
    view, _ = make_view()
    view.begin("search", 99)
    for number in range(40):
        view.started(f"{number:04d}", a_recipe())
    assert drawn(view).count("epoch 0/4") == 8
    assert "40 running" in drawn(view)


@pytest.mark.parametrize(
    ("inherited", "finished", "elapsed", "left"),
    [
        (0, 2, 100.0, 400.0),  # 2 of 10 took 100 s
        (4, 2, 100.0, 200.0),  # runs of an earlier start took none of this one's time
        (0, 0, 100.0, None),
        (9, 1, 100.0, 0.0),
    ],
)
def test_the_seconds_left_in_a_phase_follow_from_the_runs_that_ended_in_it(
    monkeypatch: pytest.MonkeyPatch, inherited: int, finished: int, elapsed: float, left: float | None
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    view, _ = make_view()
    view.begin("screening", 10, Counter(finished=inherited))
    now[0] += elapsed
    for number in range(finished):
        view.started(f"{number}", a_recipe())
        view.on_trial_end(f"{number}", "finished", 0.5)
    assert view.seconds_left() == pytest.approx(left)


@pytest.mark.parametrize(
    ("epochs", "elapsed", "stretch"),
    [
        (1, 100.0, 1.0),  # the start of Ray tells nothing
        (9, 100.0, 1.0),  # 8 s of epochs are too little to tell
        (41, 30.0, 1.5),  # 40 s of epochs, two at a time, took 30 s
        (41, 10.0, 1.0),
        (41, 999.0, 2.0),
    ],
)
def test_overhead_between_epochs_stretches_the_forecast(
    monkeypatch: pytest.MonkeyPatch, epochs: int, elapsed: float, stretch: float
) -> None:
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    view, _ = make_view()
    view.begin("search", 10)
    now[0] += 10
    for _ in range(epochs):
        view.on_epoch(as_dict(a_record("0000", (0.5,), "pruned")))  # an epoch of one second
    now[0] += elapsed
    assert view.stretch(2) == pytest.approx(stretch)


MARKUP = "[bold red]ants[/bold red] [link=file:///etc/passwd]x[/link] [/]"


@pytest.mark.parametrize("show", [lambda view: view.print_line(MARKUP), lambda view: view.begin(MARKUP, 1)])
def test_markup_in_printed_lines_is_not_interpreted(show: Callable[[ProgressView], None]) -> None:
    view, screen = make_view(terminal=True)
    show(view)
    assert MARKUP in screen.getvalue()


def test_markup_in_the_name_of_a_sweep_is_not_interpreted() -> None:
    view, _ = make_view(name="[red]colours[/red]")
    view.begin("search", 1)
    assert "[red]colours[/red]" in drawn(view)


def test_control_characters_in_printed_lines_do_not_reach_the_terminal() -> None:
    view, screen = make_view(terminal=True)
    view.print_line("1 unreadable image: ants/\x1b]0;owned\x07\x1b[2J.jpg")
    assert "\x1b" not in screen.getvalue().replace("\x1b[0m", "")
    assert "\x07" not in screen.getvalue()
