"""Bounded storage: which trials a sampler's model is fitted on."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweeps.engine.samplers.bounded_storage import BoundedStorage

MAX_TRIALS = 40


@pytest.fixture
def storage() -> BoundedStorage:
    return BoundedStorage([StudyDirection.MAXIMIZE], MAX_TRIALS)


@pytest.fixture
def study(storage: BoundedStorage) -> optuna.Study:
    """A study of 400 trials: every fourth is pruned, every seventh failed."""
    study = optuna.create_study(storage=storage, direction="maximize")
    generator = random.Random(0)
    for number in range(400):
        if number % 7 == 6:
            study.add_trial(optuna.create_trial(state=TrialState.FAIL))
        elif number % 4 == 3:
            study.add_trial(optuna.create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.1}))
        else:
            study.add_trial(optuna.create_trial(state=TrialState.COMPLETE, value=generator.random()))
    return study


def test_a_sampler_sees_the_best_the_most_recent_and_a_random_half_of_the_others(
    storage: BoundedStorage, study: optuna.Study
) -> None:
    everything = study.trials
    shown = {}
    for seed in (1, 2):
        with storage.bounded(seed):
            shown[seed] = study.trials
    used = [trial for trial in everything if trial.state != TrialState.FAIL]
    complete = [trial for trial in used if trial.state == TrialState.COMPLETE]
    best = sorted(complete, key=lambda trial: -(trial.value or 0))
    quarter = MAX_TRIALS // 4
    for trials in shown.values():
        assert len(trials) == MAX_TRIALS
        numbers = {trial.number for trial in trials}
        assert {trial.number for trial in best[:quarter]} <= numbers
        assert {trial.number for trial in used[-quarter:]} <= numbers
        assert TrialState.FAIL not in {trial.state for trial in trials}
    assert {trial.number for trial in shown[1]} != {trial.number for trial in shown[2]}
    assert len(study.trials) == len(everything) == 400


def test_running_trials_are_always_shown(storage: BoundedStorage, study: optuna.Study) -> None:
    study.ask()
    with storage.bounded(0):
        assert study.trials[-1].state == TrialState.RUNNING
        assert study.trials[-1].number == 400


def test_a_study_within_the_bound_is_shown_completely_except_for_failed_trials() -> None:
    storage = BoundedStorage([StudyDirection.MINIMIZE], max_trials=4)
    study = optuna.create_study(storage=storage)
    study.add_trials([optuna.create_trial(value=float(number)) for number in range(4)])
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    with storage.bounded(0):
        assert [trial.number for trial in study.trials] == [0, 1, 2, 3]


def test_the_best_follow_the_direction_and_are_the_best_in_each_of_two_objectives() -> None:
    storage = BoundedStorage([StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE], max_trials=8)
    study = optuna.create_study(storage=storage, directions=["maximize", "minimize"])
    values = [(0.1, 1.0), (0.9, 90.0), (0.3, 30.0), (0.2, 2.0), (0.8, 80.0), *[(0.5, 50.0)] * 20]
    study.add_trials([optuna.create_trial(values=pair, state=TrialState.COMPLETE) for pair in values])
    for seed in range(5):
        with storage.bounded(seed):
            assert {0, 1, 23, 24} <= {trial.number for trial in study.trials}
            assert len(study.trials) == 8
