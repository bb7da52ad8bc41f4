"""Who goes on: decision for decision what Ray's own schedulers say, but as pure functions over what is stored.

One difference is deliberate: nobody is stopped after the last epoch. The trial has been paid for by then, and Ray's
ASHA, given a rung there, would have it count as stopped.
"""

from __future__ import annotations

import math
import random
from copy import deepcopy
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
"""Of Tune's controller the median rule asks only who waits for a place: nobody."""


class StandIn:
    """What Ray's schedulers ask of a trial."""

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


RULES = {"asha": partial(asha, first_rung=1), "median": median}
"""Both as they judge from the first epoch on."""

PAIRS = {
    "asha": (asha, lambda epochs: rays_asha(epochs, grace=math.ceil(epochs / 4))),
    "asha from the first epoch": (RULES["asha"], rays_asha),
    "median": (median, rays_median),
}


def interleaved(seed: int, rule: str) -> list[tuple[str, int, bool, bool]]:
    """A sweep whose trials report in random order: (trial, epoch, ours says go on, Ray says go on)."""
    ours, make = PAIRS[rule]
    chance = random.Random(seed)
    epochs, count, places = chance.choice([1, 2, 3, 4, 8, 9, 12, 27]), chance.randint(2, 14), chance.randint(1, 5)
    rays = make(epochs)
    quality = [chance.random() for _ in range(count)]
    history: dict[str, LearningCurve] = {}
    trials: dict[str, StandIn] = {}
    running: list[str] = []
    said = []
    while running or len(trials) < count:
        if len(trials) < count and len(running) < places and (not running or chance.random() < 0.4):
            name = f"{len(trials):04d}"
            trials[name] = StandIn(name)
            rays.on_trial_add(CONTROLLER, trials[name])
            running.append(name)
        name = chance.choice(running)
        # Coarse values, for ties must be broken alike too.
        value = round(quality[int(name)] + chance.gauss(0, 0.2), 1)
        history[name] = LearningCurve([*history.get(name, LearningCurve([])).values, value])
        epoch = len(history[name].values)
        result = {"epoch": epoch, "value": value}
        decision = rays.on_trial_result(CONTROLLER, trials[name], result)
        said.append((name, epoch, ours(history, name, epochs), decision == TrialScheduler.CONTINUE))
        if epoch == epochs:
            rays.on_trial_complete(CONTROLLER, trials[name], result)
        if epoch == epochs or decision != TrialScheduler.CONTINUE:
            running.remove(name)
    return [entry for entry in said if entry[1] < epochs] + [(n, e, True, o) for n, e, o, _ in said if e == epochs]


@pytest.mark.parametrize("rule", PAIRS)
def test_decisions_are_rays_in_many_interleavings(rule: str) -> None:
    said = [entry for seed in RUNS for entry in interleaved(seed, rule)]
    assert [entry for entry in said if entry[2] != entry[3]] == []
    stopped = sum(not ours for _, _, ours, _ in said)
    assert stopped > len(RUNS), "too few were stopped for this to say anything"
    assert stopped < len(said) / 2


def test_unlike_with_rays_asha_nobody_is_stopped_after_the_last_epoch() -> None:
    rays = rays_asha(3)
    history = {}
    for name, values in {"good": [0.5, 0.9, 0.9], "bad": [0.5, 0.9, 0.1]}.items():
        trial = StandIn(name)
        rays.on_trial_add(CONTROLLER, trial)
        said = [rays.on_trial_result(CONTROLLER, trial, {"epoch": n, "value": v}) for n, v in enumerate(values, 1)]
        history[name] = LearningCurve(values)
    assert said[-1] == TrialScheduler.STOP
    assert asha(history, "bad", epochs=3, first_rung=1)
    assert not asha(history, "bad", epochs=4, first_rung=1)


def test_nor_by_the_median_rule() -> None:
    history = {**{str(number): LearningCurve([0.8, 0.8]) for number in range(3)}, "bad": LearningCurve([0.1, 0.1])}
    assert median(history, "bad", epochs=2)
    assert not median(history, "bad", epochs=3)


@pytest.mark.parametrize(
    ("epochs", "first", "rungs"),
    [(20, None, {5, 15}), (8, None, {2, 6}), (4, None, {1, 3}), (1, None, set()), (20, 1, {1, 3, 9}), (9, 2, {2, 6})],
)
def test_asha_judges_at_its_rungs_only_the_first_after_a_quarter_of_the_epochs(
    epochs: int, first: int | None, rungs: set[int]
) -> None:
    good = LearningCurve([0.9] * epochs)
    judged = {
        epoch
        for epoch in range(1, epochs + 1)
        if not asha({"good": good, "bad": LearningCurve([0.1] * epoch)}, "bad", epochs, first)
    }
    assert judged == rungs


def test_asha_lets_the_best_third_of_those_before_go_on() -> None:
    others = {str(number): LearningCurve([number / 10]) for number in range(1, 8)}
    passed = [value for value in range(9) if asha({**others, "me": LearningCurve([value / 10])}, "me", epochs=4)]
    assert passed == [5, 6, 7, 8]


def test_the_median_rule_waits_for_three_others() -> None:
    others = {str(number): LearningCurve([0.9, 0.9]) for number in range(2)}
    assert median({**others, "bad": LearningCurve([0.1])}, "bad", epochs=4)
    assert not median({**others, "third": LearningCurve([0.9]), "bad": LearningCurve([0.1])}, "bad", epochs=4)


def test_the_median_rule_takes_the_best_value_so_far() -> None:
    others = {str(number): LearningCurve([0.5, 0.5]) for number in range(3)}
    assert median({**others, "me": LearningCurve([0.6, 0.1])}, "me", epochs=4)
    assert not median({**others, "me": LearningCurve([0.4, 0.4])}, "me", epochs=4)


# --- nothing is said of a network that is still frozen ---------------------------------------------------------------


def good(count: int = 6, length: int = 27) -> dict[str, LearningCurve]:
    return {f"good{number}": LearningCurve([0.9] * length) for number in range(count)}


@pytest.mark.parametrize("frozen", [1, 2, 3])
@pytest.mark.parametrize("rule", RULES)
def test_nobody_is_judged_before_the_epoch_after_it_unfreezes(rule: str, frozen: int) -> None:
    for epoch in range(1, frozen + 1):
        assert RULES[rule]({**good(), "me": LearningCurve([0.0] * epoch, last_unfreeze_epoch=frozen)}, "me", 27)
    assert not all(
        RULES[rule]({**good(), "me": LearningCurve([0.0] * epoch, last_unfreeze_epoch=frozen)}, "me", 27)
        for epoch in range(frozen + 1, 10)
    )


def test_the_median_rule_judges_in_the_very_next_epoch() -> None:
    assert not median({**good(), "me": LearningCurve([0.0] * 3, last_unfreeze_epoch=2)}, "me", 27)


def test_asha_judges_at_the_next_rung() -> None:
    assert not RULES["asha"]({**good(), "me": LearningCurve([0.0] * 3, last_unfreeze_epoch=2)}, "me", 27)
    assert not RULES["asha"]({**good(), "me": LearningCurve([0.0] * 9, last_unfreeze_epoch=3)}, "me", 27)


@pytest.mark.parametrize("rule", RULES)
def test_nor_does_a_frozen_network_count_against_others(rule: str) -> None:
    frozen = {f"frozen{number}": LearningCurve([0.9, 0.9], last_unfreeze_epoch=2) for number in range(6)}
    assert RULES[rule]({**frozen, "me": LearningCurve([0.1])}, "me", 27)
    free = {name: LearningCurve(progress.values) for name, progress in frozen.items()}
    assert not RULES[rule]({**free, "me": LearningCurve([0.1])}, "me", 27)


def test_the_median_rule_leaves_frozen_epochs_out_of_running_means_and_of_the_best() -> None:
    others = {str(number): LearningCurve([0.0, 0.0, 0.8], last_unfreeze_epoch=2) for number in range(3)}
    assert not median({**others, "me": LearningCurve([0.5, 0.5, 0.5])}, "me", epochs=9)
    even = {str(number): LearningCurve([0.6, 0.6, 0.6]) for number in range(3)}
    assert not median({**even, "me": LearningCurve([0.9, 0.9, 0.5], last_unfreeze_epoch=2)}, "me", epochs=9)


# --- one epoch for all, then the best few ---------------------------------------------------------------------------


def after_one(*values: float) -> dict[str, LearningCurve]:
    return {f"{number:04d}": LearningCurve([value]) for number, value in enumerate(values)}


def test_of_those_that_had_one_epoch_the_best_three_go_on() -> None:
    history = after_one(0.5, 0.9, 0.1, 0.7, 0.6)
    assert {name for name in history if one_epoch_top_k(history, name, 8)} == {"0001", "0003", "0004"}
    assert {one_epoch_top_k(history, name, 8) for name in ("0000", "0002")} == {False}


def test_a_tie_goes_to_the_earlier_trial() -> None:
    history = after_one(0.5, 0.9, 0.9, 0.5, 0.5)
    assert [one_epoch_top_k(history, name, 8) for name in history] == [True, True, True, False, False]


@pytest.mark.parametrize(("trials", "most"), [(1, 3), (24, 3), (25, 4), (64, 8), (5000, 625)])
def test_an_eighth_goes_on_and_at_least_three(trials: int, most: int) -> None:
    assert top_k_count(trials) == most


def test_everybody_waits_until_all_have_had_their_epoch() -> None:
    for missing in (LearningCurve(()), LearningCurve([0.1, 0.2], last_unfreeze_epoch=2)):
        history = {**after_one(0.5, 0.9, 0.1, 0.7), "late": missing}
        assert [one_epoch_top_k(history, name, 8) for name in after_one(0, 0, 0, 0)] == [None] * 4
        assert [one_epoch_top_k({**history, "late": LearningCurve([0.8])}, name, 8) for name in history] == [
            *(False, True, False, True, True)
        ]


def test_nobody_waits_for_a_trial_that_failed_before() -> None:
    history = {**after_one(0.5, 0.9, 0.1, 0.7), "lost": LearningCurve((), ended=True)}
    assert [one_epoch_top_k(history, name, 8) for name in after_one(0, 0, 0, 0)] == [True, True, False, True]


def test_nor_for_one_whose_value_was_not_measured_which_goes_on() -> None:
    history = {**after_one(0.5, 0.9, 0.1, 0.7), "blind": LearningCurve([None])}
    assert [one_epoch_top_k(history, name, 8) for name in history] == [True, True, False, True, True]


def test_those_that_go_on_are_compared_by_their_first_epoch_ever_after() -> None:
    history = {**after_one(0.5, 0.9, 0.1, 0.7), "0003": LearningCurve([0.7, 0.0, 0.0])}
    assert one_epoch_top_k(history, "0003", 8)
    assert not one_epoch_top_k(history, "0002", 8)


def test_a_network_that_is_frozen_first_is_compared_by_its_first_epoch_after_that() -> None:
    history = {**after_one(0.5, 0.9, 0.6, 0.7), "frozen": LearningCurve([0.9, 0.9, 0.1], last_unfreeze_epoch=2)}
    assert not one_epoch_top_k(history, "frozen", 8)
    assert one_epoch_top_k({**history, "frozen": LearningCurve([0.1, 0.1, 0.9], last_unfreeze_epoch=2)}, "frozen", 8)
    assert one_epoch_top_k({**history, "frozen": LearningCurve([0.1], last_unfreeze_epoch=2)}, "frozen", 8)


def test_after_the_last_epoch_nobody_is_pruned_and_nobody_waits() -> None:
    history = {
        **after_one(0.5, 0.9, 0.6, 0.7),
        "last": LearningCurve([0.1, 0.1, 0.1], last_unfreeze_epoch=2),
        "new": LearningCurve(()),
    }
    assert one_epoch_top_k(history, "last", 3)


# --- pure ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", SCHEDULERS)
def test_the_same_history_gives_the_same_answer_in_any_order(rule: str) -> None:
    chance = random.Random(1)
    judge = SCHEDULERS[rule]
    for _ in range(40):
        items = [
            (
                f"{n:04d}",
                LearningCurve([chance.random() for _ in range(chance.randint(0, 9))], chance.choice([0, 0, 2])),
            )
            for n in range(8)
        ]
        items.append(("me", LearningCurve([chance.random() for _ in range(chance.choice([1, 3, 4, 9]))])))
        history: TrialHistory = dict(items)
        before = deepcopy(history)
        first = judge(history, "me", 12)
        assert history == before
        chance.shuffle(items)
        assert judge(dict(items), "me", 12) == first == judge(history, "me", 12)


def test_without_a_scheduler_everybody_runs_to_the_end() -> None:
    assert all(none({**good(), "me": LearningCurve([0.0] * epoch)}, "me", 9) for epoch in range(1, 10))


@pytest.mark.parametrize("rule", SCHEDULERS)
def test_a_trial_alone_goes_on(rule: str) -> None:
    assert all(SCHEDULERS[rule]({"me": LearningCurve([0.0] * epoch)}, "me", 9) for epoch in range(1, 10))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_head_that_is_over_after_one_epoch_is_held_against_nobody(name: str) -> None:
    """What it has come to is its end: others' first epochs are only their beginning."""
    heads = {f"head{number}": LearningCurve([0.9], last_unfreeze_epoch=1, ended=True) for number in range(6)}
    others = {f"{number:04d}": LearningCurve([0.1 * number], ended=number > 2) for number in range(4)}
    for epochs in (2, 4, 24):
        for trial in others:
            with_them = SCHEDULERS[name]({**heads, **others}, trial, epochs)
            assert with_them == SCHEDULERS[name](others, trial, epochs) or name == "one_epoch_top_k"
    goes_on = {trial: one_epoch_top_k({**heads, **others}, trial, 4) for trial in others}
    assert goes_on == {"0000": False, "0001": True, "0002": True, "0003": True}
