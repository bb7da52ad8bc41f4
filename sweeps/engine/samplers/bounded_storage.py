"""Bounded storage: shows samplers a bounded number of trials, so that proposals stay fast after thousands of trials."""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

ACTIVE_STATES = (TrialState.RUNNING, TrialState.WAITING)
ENDED_STATES = (TrialState.COMPLETE, TrialState.PRUNED)


class BoundedStorage(InMemoryStorage):
    """A study's trials in memory; within `bounded`, it shows at most `max_trials` finished or pruned ones.

    If there are more, it shows a quarter of best trials (with two objectives the best in each), a quarter of most
    recent trials, and a random half of the others. A model moves towards the best; the random half represents the rest
    of the space, without which the best would look rare; the recent ones say where it has just searched. Failed trials
    are never shown, because no model uses them. Running trials are always shown.

    Args:
        directions: the directions of the study's objectives.
        max_trials: number of trials shown.
    """

    def __init__(self, directions: Sequence[StudyDirection], max_trials: int) -> None:
        super().__init__()
        self._signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in directions]
        self._max_trials = max_trials
        self._ended: list[int] = []
        self._ranked: list[list[tuple[float, int]]] = [[] for _ in directions]
        self._running: dict[int, None] = {}
        self._shown: list[FrozenTrial] | None = None

    @contextmanager
    def bounded(self, seed: int) -> Iterator[None]:
        """Show a bounded number of trials within this context; `seed` decides the random half."""
        self._shown = [self.get_trial(trial_id) for trial_id in self._select(random.Random(seed))]
        try:
            yield
        finally:
            self._shown = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Override `InMemoryStorage`."""
        trial_id = super().create_new_trial(study_id, template_trial)
        self._register(trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Override `InMemoryStorage`."""
        changed = super().set_trial_state_values(trial_id, state, values)
        self._register(trial_id)
        return changed

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Override `InMemoryStorage`."""
        if self._shown is None or states == (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        shown = [*self._shown, *map(self.get_trial, self._running)]
        return [trial for trial in shown if states is None or trial.state in states]

    def _register(self, trial_id: int) -> None:
        """Track a trial by its state."""
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

    def _select(self, generator: random.Random) -> list[int]:
        """Return the ids of the trials to show."""
        if len(self._ended) <= self._max_trials:
            return self._ended.copy()
        quarter = max(1, self._max_trials // 4)
        per_objective = -(-quarter // len(self._ranked))
        best = {trial_id for ranked in self._ranked for _, trial_id in ranked[:per_objective]}
        fixed = best | set(self._ended[-quarter:])
        others = [trial_id for trial_id in self._ended if trial_id not in fixed]
        drawn = generator.sample(others, max(0, min(len(others), self._max_trials - len(fixed))))
        return sorted(fixed.union(drawn))
