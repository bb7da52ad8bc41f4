"""Fitted: the study that samplers see. Of thousands of trials it shows them a bounded number: asking stays quick."""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

ACTIVE_STATES = (TrialState.RUNNING, TrialState.WAITING)
ENDED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)


class BoundedStorage(InMemoryStorage):
    """A study's trials in memory; while it is `narrowed`, it shows no more than `most` of those that have ended.

    Of more than that it shows the best quarter (of `most`, and with two objectives the best in each), the most recent
    quarter, and half drawn from the others. The best are what a model goes towards; the draw tells it what there is
    elsewhere, without which those few would look rare; the recent ones tell it where it has just been. Trials that
    failed are never shown: no model uses them. Trials that run are always shown.

    Args:
        directions: the study's.
        most: how many.
    """

    def __init__(self, directions: Sequence[StudyDirection], most: int) -> None:
        super().__init__()
        self._signs = [1.0 if each == StudyDirection.MAXIMIZE else -1.0 for each in directions]
        self._most = most
        self._ended: list[int] = []
        self._ranked: list[list[tuple[float, int]]] = [[] for _ in directions]
        self._running: dict[int, None] = {}
        self._shown: list[FrozenTrial] | None = None

    @contextmanager
    def bounded(self, seed: int) -> Iterator[None]:
        """Show a bounded number of trials, drawn by `seed`."""
        self._shown = [self.get_trial(number) for number in self._chosen(random.Random(seed))]
        try:
            yield
        finally:
            self._shown = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """See Optuna."""
        number = super().create_new_trial(study_id, template_trial)
        self._note(number)
        return number

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See Optuna."""
        done = super().set_trial_state_values(trial_id, state, values)
        self._note(trial_id)
        return done

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See Optuna."""
        if self._shown is None or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        shown = [*self._shown, *map(self.get_trial, self._running)]
        return [trial for trial in shown if states is None or trial.state in states]

    def _note(self, trial_id: int) -> None:
        trial = self.get_trial(trial_id)
        if trial.state in ACTIVE_STATES:
            self._running[trial_id] = None
            return
        self._running.pop(trial_id, None)
        if trial.state in ENDED_STATES:
            self._ended.append(trial_id)
        if trial.state == TrialState.COMPLETE:
            for ranked, sign, value in zip(self._ranked, self._signs, trial.values, strict=True):
                insort(ranked, (-sign * value, trial_id))

    def _chosen(self, chance: random.Random) -> list[int]:
        if len(self._ended) <= self._most:
            return self._ended.copy()
        quarter = max(1, self._most // 4)
        each = -(-quarter // len(self._ranked))
        best = {number for ranked in self._ranked for _, number in ranked[:each]}
        fixed = best | set(self._ended[-quarter:])
        others = [number for number in self._ended if number not in fixed]
        drawn = chance.sample(others, max(0, min(len(others), self._most - len(fixed))))
        return sorted(fixed.union(drawn))


class JointGPSampler(GPSampler):
    """Optuna's Gaussian process over the union of all parameters, where its own knows only those that every trial has.

    A parameter that a trial does not have, another optimizer's learning rate for instance, counts as the middle of its
    range there, and what is proposed for one that does not exist is not asked for.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=10, warn_independent_sampling=False)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See Optuna."""
        found: dict[str, BaseDistribution] = {}
        for each in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            found.update(each.distributions)
        return {name: found[name] for name in sorted(found) if not found[name].single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See Optuna."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        whole = optuna.create_study(directions=study.directions)
        whole.add_trials([_filled(each, search_space) for each in trials if each.number != trial.number])
        asked = whole.ask()
        return super().sample_relative(whole, whole.trials[asked.number], search_space)


def _filled(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    return optuna.create_trial(
        state=trial.state,
        values=trial.values if trial.state == TrialState.COMPLETE else None,
        params={name: trial.params.get(name, _middle(distribution)) for name, distribution in space.items()},
        distributions=dict(space),
    )


def _middle(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    middle = (low * high) ** 0.5 if distribution.log else (low + high) / 2
    return round(middle) if isinstance(distribution, IntDistribution) else middle
