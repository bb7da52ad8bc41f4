"""Schedulers: the same decisions as Ray's own schedulers, but as pure functions over stored learning curves.

One difference is deliberate: no trial is stopped after its last epoch. Its cost is spent by then, and Ray's ASHA would
count it as stopped if there is a rung at that epoch.
"""

from __future__ import annotations

import math
import random
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from sweeps.engine.schedulers import (
    SCHEDULERS,
    LearningCurve,
    TrialHistory,
    asha,
    median,
    none,
    one_epoch_top_k,
    top_k_count,
)

RUNS = range(60)
CONTROLLER = SimpleNamespace(get_live_trials=list)
"""Stands for Ray Tune's controller, which the median rule asks only for pending trials: there are none."""


class StandIn:
    """The part of a trial that Ray's schedulers use."""

    def __init__(self, name: str) -> None:
        self.trial_id = name


def rays_asha(epochs: int, grace: int = 1) -> Any:
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="value",
        mode="max",
        grace_period=grace,
        reduction_factor=3,
        brackets=1,
        max_t=10 * epochs,
    )


def rays_median(epochs: int) -> Any:
    return MedianStoppingRule(
        time_attr="epoch", metric="value", mode="max", grace_period=1, min_samples_required=3, hard_stop=True
    )


def decide(rule: Any, history: TrialHistory, trial: str, epochs: int, *args: Any, **options: Any) -> bool | None:
    """Ask a scheduler about a trial among others of the same length."""
    curves = {name: replace(curve, epochs=epochs) for name, curve in history.items()}
    decision: bool | None = rule(curves, trial, *args, **options)
    return decision


RULES = {"asha": partial(asha, first_rung=1), "median": median}
"""Both schedulers, deciding from the first epoch on."""

PAIRS = {
    "asha": (asha, lambda epochs: rays_asha(epochs, grace=math.ceil(epochs / 4))),
    "asha from the first epoch": (RULES["asha"], rays_asha),
    "median": (median, rays_median),
}


def interleaved(seed: int, rule: str) -> list[tuple[str, int, bool, bool]]:
    """Simulate a sweep whose trials report in random order: (trial, epoch, our decision, Ray's decision)."""
    ours, make = PAIRS[rule]
    rng = random.Random(seed)
    epochs, count, slots = rng.choice([1, 2, 3, 4, 8, 9, 12, 27]), rng.randint(2, 14), rng.randint(1, 5)
    rays = make(epochs)
    quality = [rng.random() for _ in range(count)]
    history: dict[str, LearningCurve] = {}
    trials: dict[str, StandIn] = {}
    running: list[str] = []
    decisions = []
    while running or len(trials) < count:
        if len(trials) < count and len(running) < slots and (not running or rng.random() < 0.4):
            name = f"{len(trials):04d}"
            trials[name] = StandIn(name)
            rays.on_trial_add(CONTROLLER, trials[name])
            running.append(name)
        name = rng.choice(running)
        # Coarse values, because ties must be broken in the same way too.
        value = round(quality[int(name)] + rng.gauss(0, 0.2), 1)
        history[name] = LearningCurve([*history.get(name, LearningCurve([])).values, value])
        epoch = len(history[name].values)
        result = {"epoch": epoch, "value": value}
        decision = rays.on_trial_result(CONTROLLER, trials[name], result)
        decisions.append((name, epoch, decide(ours, history, name, epochs), decision == TrialScheduler.CONTINUE))
        if epoch == epochs:
            rays.on_trial_complete(CONTROLLER, trials[name], result)
        if epoch == epochs or decision != TrialScheduler.CONTINUE:
            running.remove(name)
    return [entry for entry in decisions if entry[1] < epochs] + [
        (n, e, True, o) for n, e, o, _ in decisions if e == epochs
    ]


@pytest.mark.parametrize("rule", PAIRS)
def test_decisions_equal_rays_in_many_interleavings(rule: str) -> None:
    decisions = [entry for seed in RUNS for entry in interleaved(seed, rule)]
    assert [entry for entry in decisions if entry[2] != entry[3]] == []
    stopped = sum(not ours for _, _, ours, _ in decisions)
    assert stopped > len(RUNS), "too few trials were stopped for this test to mean anything"
    assert stopped < len(decisions) / 2


def test_unlike_rays_asha_ours_stops_no_trial_after_its_last_epoch() -> None:
    rays = rays_asha(3)
    history = {}
    for name, values in {"good": [0.5, 0.9, 0.9], "bad": [0.5, 0.9, 0.1]}.items():
        trial = StandIn(name)
        rays.on_trial_add(CONTROLLER, trial)
        decisions = [rays.on_trial_result(CONTROLLER, trial, {"epoch": n, "value": v}) for n, v in enumerate(values, 1)]
        history[name] = LearningCurve(values)
    assert decisions[-1] == TrialScheduler.STOP
    assert decide(asha, history, "bad", epochs=3, first_rung=1)
    assert not decide(asha, history, "bad", epochs=4, first_rung=1)


def test_the_median_rule_stops_no_trial_after_its_last_epoch() -> None:
    history = {**{str(number): LearningCurve([0.8, 0.8]) for number in range(3)}, "bad": LearningCurve([0.1, 0.1])}
    assert decide(median, history, "bad", epochs=2)
    assert not decide(median, history, "bad", epochs=3)


@pytest.mark.parametrize(
    ("epochs", "first", "rungs"),
    [(20, None, {5, 15}), (8, None, {2, 6}), (4, None, {1, 3}), (1, None, set()), (20, 1, {1, 3, 9}), (9, 2, {2, 6})],
)
def test_asha_stops_trials_only_at_its_rungs_of_which_the_first_is_at_a_quarter_of_the_epochs(
    epochs: int, first: int | None, rungs: set[int]
) -> None:
    good = LearningCurve([0.9] * epochs)
    stopped_at = {
        epoch
        for epoch in range(1, epochs + 1)
        if not decide(asha, {"good": good, "bad": LearningCurve([0.1] * epoch)}, "bad", epochs, first)
    }
    assert stopped_at == rungs


def test_asha_continues_a_trial_among_the_best_third_of_earlier_ones() -> None:
    others = {str(number): LearningCurve([number / 10]) for number in range(1, 8)}
    passed = [
        value for value in range(9) if decide(asha, {**others, "me": LearningCurve([value / 10])}, "me", epochs=4)
    ]
    assert passed == [5, 6, 7, 8]


def test_the_median_rule_needs_three_other_trials() -> None:
    others = {str(number): LearningCurve([0.9, 0.9]) for number in range(2)}
    assert decide(median, {**others, "bad": LearningCurve([0.1])}, "bad", epochs=4)
    assert not decide(median, {**others, "third": LearningCurve([0.9]), "bad": LearningCurve([0.1])}, "bad", epochs=4)


def test_the_median_rule_compares_the_best_score_so_far() -> None:
    others = {str(number): LearningCurve([0.5, 0.5]) for number in range(3)}
    assert decide(median, {**others, "me": LearningCurve([0.6, 0.1])}, "me", epochs=4)
    assert not decide(median, {**others, "me": LearningCurve([0.4, 0.4])}, "me", epochs=4)


# --- networks that are frozen at first ---------------------------------------------------------------


def good(count: int = 6, length: int = 27) -> dict[str, LearningCurve]:
    return {f"good{number}": LearningCurve([0.9] * length) for number in range(count)}


@pytest.mark.parametrize("frozen", [1, 2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_no_trial_is_stopped_before_the_epoch_after_it_unfreezes(rule: str, frozen: int) -> None:
    for epoch in range(1, frozen + 1):
        assert decide(RULES[rule], {**good(), "me": LearningCurve([0.0] * epoch, last_unfreeze_epoch=frozen)}, "me", 27)
    assert not all(
        decide(RULES[rule], {**good(), "me": LearningCurve([0.0] * epoch, last_unfreeze_epoch=frozen)}, "me", 27)
        for epoch in range(frozen + 1, 10)
    )


def test_the_median_rule_can_stop_a_trial_in_the_epoch_after_it_unfreezes() -> None:
    assert not decide(median, {**good(), "me": LearningCurve([0.0] * 3, last_unfreeze_epoch=2)}, "me", 27)


def test_asha_can_stop_a_trial_at_the_rung_after_it_unfreezes() -> None:
    assert not decide(RULES["asha"], {**good(), "me": LearningCurve([0.0] * 3, last_unfreeze_epoch=2)}, "me", 27)
    assert not decide(RULES["asha"], {**good(), "me": LearningCurve([0.0] * 9, last_unfreeze_epoch=3)}, "me", 27)


@pytest.mark.parametrize("rule", RULES)
def test_scores_of_frozen_epochs_do_not_count_against_other_trials(rule: str) -> None:
    frozen = {f"frozen{number}": LearningCurve([0.9, 0.9], last_unfreeze_epoch=2) for number in range(6)}
    assert decide(RULES[rule], {**frozen, "me": LearningCurve([0.1])}, "me", 27)
    free = {name: LearningCurve(curve.values) for name, curve in frozen.items()}
    assert not decide(RULES[rule], {**free, "me": LearningCurve([0.1])}, "me", 27)


def test_the_median_rule_ignores_frozen_epochs_in_running_means_and_in_the_best_score() -> None:
    others = {str(number): LearningCurve([0.0, 0.0, 0.8], last_unfreeze_epoch=2) for number in range(3)}
    assert not decide(median, {**others, "me": LearningCurve([0.5, 0.5, 0.5])}, "me", epochs=9)
    even = {str(number): LearningCurve([0.6, 0.6, 0.6]) for number in range(3)}
    assert not decide(median, {**even, "me": LearningCurve([0.9, 0.9, 0.5], last_unfreeze_epoch=2)}, "me", epochs=9)


# --- one epoch for all trials, then only the best ---------------------------------------------------------------------


def after_one(*values: float) -> dict[str, LearningCurve]:
    return {f"{number:04d}": LearningCurve([value]) for number, value in enumerate(values)}


def test_after_one_epoch_the_best_three_trials_continue() -> None:
    history = after_one(0.5, 0.9, 0.1, 0.7, 0.6)
    assert {name for name in history if decide(one_epoch_top_k, history, name, 8)} == {"0001", "0003", "0004"}
    assert {decide(one_epoch_top_k, history, name, 8) for name in ("0000", "0002")} == {False}


def test_a_tie_goes_to_the_earlier_trial() -> None:
    history = after_one(0.5, 0.9, 0.9, 0.5, 0.5)
    assert [decide(one_epoch_top_k, history, name, 8) for name in history] == [True, True, True, False, False]


@pytest.mark.parametrize(("trials", "count"), [(1, 3), (24, 3), (25, 4), (64, 8), (5000, 625)])
def test_an_eighth_of_the_trials_continues_and_at_least_three(trials: int, count: int) -> None:
    assert top_k_count(trials) == count


def test_trials_wait_until_all_have_had_their_epoch() -> None:
    for missing in (LearningCurve(()), LearningCurve([0.1, 0.2], last_unfreeze_epoch=2)):
        history = {**after_one(0.5, 0.9, 0.1, 0.7), "late": missing}
        assert [decide(one_epoch_top_k, history, name, 8) for name in after_one(0, 0, 0, 0)] == [None] * 4
        assert [decide(one_epoch_top_k, {**history, "late": LearningCurve([0.8])}, name, 8) for name in history] == [
            *(False, True, False, True, True)
        ]


def test_no_trial_waits_for_one_that_failed() -> None:
    history = {**after_one(0.5, 0.9, 0.1, 0.7), "lost": LearningCurve((), ended=True)}
    assert [decide(one_epoch_top_k, history, name, 8) for name in after_one(0, 0, 0, 0)] == [True, True, False, True]


def test_no_trial_waits_for_one_without_a_measured_score_and_that_one_continues() -> None:
    history = {**after_one(0.5, 0.9, 0.1, 0.7), "unmeasured": LearningCurve([None])}
    assert [decide(one_epoch_top_k, history, name, 8) for name in history] == [True, True, False, True, True]


def test_trials_that_continue_are_still_compared_by_their_first_epoch() -> None:
    history = {**after_one(0.5, 0.9, 0.1, 0.7), "0003": LearningCurve([0.7, 0.0, 0.0])}
    assert decide(one_epoch_top_k, history, "0003", 8)
    assert not decide(one_epoch_top_k, history, "0002", 8)


def test_a_network_that_is_frozen_at_first_is_compared_by_its_first_epoch_after_unfreezing() -> None:
    history = {**after_one(0.5, 0.9, 0.6, 0.7), "frozen": LearningCurve([0.9, 0.9, 0.1], last_unfreeze_epoch=2)}
    assert not decide(one_epoch_top_k, history, "frozen", 8)
    assert decide(
        one_epoch_top_k, {**history, "frozen": LearningCurve([0.1, 0.1, 0.9], last_unfreeze_epoch=2)}, "frozen", 8
    )
    assert decide(one_epoch_top_k, {**history, "frozen": LearningCurve([0.1], last_unfreeze_epoch=2)}, "frozen", 8)


def test_a_trial_neither_stops_nor_waits_after_its_last_epoch() -> None:
    history = {
        **after_one(0.5, 0.9, 0.6, 0.7),
        "last": LearningCurve([0.1, 0.1, 0.1], last_unfreeze_epoch=2),
        "new": LearningCurve(()),
    }
    assert decide(one_epoch_top_k, history, "last", 3)


# --- trials of different lengths ---------------------------------------------------------------------


def constant(value: float, epochs: int, length: int) -> LearningCurve:
    return LearningCurve([value] * epochs, epochs=length)


@pytest.mark.parametrize(("length", "rungs"), [(8, {2, 6}), (24, {6, 18}), (23, {6, 18}), (75, {19, 57})])
def test_asha_compares_long_trials_with_short_ones_at_the_same_fraction(length: int, rungs: set[int]) -> None:
    others = {str(number): constant(0.9, 8, 8) for number in range(3)}
    stopped_at = {n for n in range(1, length) if not asha({**others, "me": constant(0.1, n, length)}, "me")}
    assert stopped_at == rungs


@pytest.mark.parametrize("epoch", [2, 6])
def test_asha_compares_short_trials_with_long_ones_at_the_same_fraction(epoch: int) -> None:
    late = LearningCurve([0.1] * (3 * epoch - 1) + [0.9], epochs=24)
    early = LearningCurve([0.9] * (3 * epoch - 1) + [0.1], epochs=24)
    assert not asha({"other": late, "me": constant(0.5, epoch, 8)}, "me")
    assert asha({"other": early, "me": constant(0.5, epoch, 8)}, "me")
    assert asha({"other": constant(0.9, 3 * epoch - 1, 24), "me": constant(0.5, epoch, 8)}, "me")


def test_the_median_rule_averages_others_up_to_the_same_fraction() -> None:
    rising = {str(number): LearningCurve([0.2] * 12 + [1.0] * 12, epochs=24) for number in range(3)}
    assert median({**rising, "me": constant(0.5, 4, 8)}, "me")
    assert not median({**rising, "me": constant(0.5, 7, 8)}, "me")  # (12 * 0.2 + 9 * 1.0) / 21 = 0.54


def test_one_epoch_of_eight_equals_three_of_twenty_four() -> None:
    history = {f"{number}": constant(0.5, 1, 8) for number in range(3)}
    assert one_epoch_top_k({**history, "long": constant(0.9, 2, 24)}, "long")
    assert [one_epoch_top_k({**history, "long": constant(0.9, 2, 24)}, name) for name in history] == [None] * 3
    waited = {**history, "long": LearningCurve([0.1, 0.1, 0.9], epochs=24)}
    assert [one_epoch_top_k(waited, name) for name in waited] == [True, True, False, True]


# --- properties of all schedulers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SCHEDULERS)
def test_the_same_history_gives_the_same_answer_in_any_order(rule: str) -> None:
    rng = random.Random(1)
    scheduler = SCHEDULERS[rule]
    for _ in range(40):
        items = [
            (
                f"{n:04d}",
                LearningCurve([rng.random() for _ in range(rng.randint(0, 9))], rng.choice([0, 0, 2])),
            )
            for n in range(8)
        ]
        items.append(("me", LearningCurve([rng.random() for _ in range(rng.choice([1, 3, 4, 9]))])))
        history: TrialHistory = dict(items)
        before = deepcopy(history)
        first = decide(scheduler, history, "me", 12)
        assert history == before
        rng.shuffle(items)
        assert decide(scheduler, dict(items), "me", 12) == first == decide(scheduler, history, "me", 12)


def test_without_a_scheduler_every_trial_runs_to_the_end() -> None:
    assert all(decide(none, {**good(), "me": LearningCurve([0.0] * epoch)}, "me", 9) for epoch in range(1, 10))


@pytest.mark.parametrize("rule", SCHEDULERS)
def test_a_single_trial_continues(rule: str) -> None:
    assert all(decide(SCHEDULERS[rule], {"me": LearningCurve([0.0] * epoch)}, "me", 9) for epoch in range(1, 10))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_closed_form_head_with_its_single_epoch_does_not_count_against_other_trials(name: str) -> None:
    """Its only score is final, while other trials have only begun after their first epoch."""
    heads = {f"head{number}": LearningCurve([0.9], last_unfreeze_epoch=1, ended=True) for number in range(6)}
    others = {f"{number:04d}": LearningCurve([0.1 * number], ended=number > 2) for number in range(4)}
    for epochs in (2, 4, 24):
        for trial in others:
            with_them = decide(SCHEDULERS[name], {**heads, **others}, trial, epochs)
            assert with_them == decide(SCHEDULERS[name], others, trial, epochs) or name == "one_epoch_top_k"
    continues = {trial: decide(one_epoch_top_k, {**heads, **others}, trial, 4) for trial in others}
    assert continues == {"0000": False, "0001": True, "0002": True, "0003": True}
