"""Ask-and-tell samplers: propose configurations from an Optuna study that is rebuilt from the store."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweeps.engine.samplers import dashboard
from sweeps.engine.samplers.bounded_storage import BoundedStorage
from sweeps.engine.samplers.grid import grid
from sweeps.engine.samplers.joint_gp import JointGPSampler
from sweeps.engine.search_space.distributions import Config
from sweeps.engine.search_space.space import Space
from xfer.choices import Value
from xfer.objectives import ACCURACY, Objective
from xfer.records import Record
from xfer.seeding import derive_seed

optuna.logging.set_verbosity(logging.WARNING)


def tpe(seed: int) -> BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) that models the parameters of one choice jointly.

    Without `group`, conditional parameters would silently fall back to independent sampling. `constant_liar` keeps
    proposals away from trials that are still running.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=10, seed=seed)


def random(seed: int) -> BaseSampler:
    """Uniform random sampling: the baseline, and a good choice for few trials."""
    return RandomSampler(seed=seed)


def gp(seed: int) -> BaseSampler:
    """Gaussian process (Mockus 1975) with logarithmic expected improvement (Ament et al. 2023) over all parameters.

    Learns from finished trials only, not from pruned ones. A proposal is tens of times slower than with `tpe` (see
    `MAX_FITTED_TRIALS`), which suits few and long trials.
    """
    return JointGPSampler(seed)


ASK_TELL_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {f.__name__: f for f in (tpe, random, gp)}
"""Samplers that draw a configuration from a seed and the study's trials."""

LEARNING_SAMPLERS = ("tpe", "gp")
"""Samplers whose proposals depend on the results of earlier trials."""

ENUMERATING_SAMPLERS: dict[str, Callable[[Space], Iterator[dict[str, Any]]]] = {f.__name__: f for f in (grid,)}
"""Samplers with a finite list of configurations that is known in advance."""

SAMPLERS = (*ASK_TELL_SAMPLERS, *ENUMERATING_SAMPLERS)

MAX_FITTED_TRIALS: dict[str, int] = {"tpe": 150, "random": 1, "gp": 100}
"""Maximum number of ended trials that a model is fitted on (see `BoundedStorage`), which bounds its cost.

Processor time of a proposal in the default space, with 500 trials in the study: `tpe` 11 ms, `gp` 0.4 s."""

TRIAL_STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class TrialOutcome:
    """The result of a trial in Optuna's terms."""

    state: TrialState
    values: list[float] | None
    """One value for each objective, in its own unit and direction; None unless the trial finished."""
    intermediate: dict[int, float]
    """Scores by epoch. Empty for two objectives: Optuna supports intermediate values of one only, and its TPE fails on
    a pruned trial that has some. Without them it ranks a pruned trial behind all finished ones, which is correct."""


def trial_outcome(record: Record, objectives: Sequence[Objective]) -> TrialOutcome:
    """Translate a record into a trial's outcome.

    A pruned trial keeps its intermediate values but gets no final one, because an early score must not compete with
    final scores. A failed trial gets none, and neither does a finished one without a value for every objective.

    Args:
        record: the trial's record.
        objectives: the objectives of the search.
    """
    state = TRIAL_STATES[record.status]
    values = [value for objective in objectives if (value := objective.value(record.epochs)) is not None]
    if state == TrialState.COMPLETE and len(values) < len(objectives):
        state = TrialState.FAIL
    curve: dict[int, float] = {}
    if len(objectives) == 1:
        scores = enumerate(objectives[0].scores(record.epochs), start=1)
        curve = {epoch: objectives[0].to_score(score) for epoch, score in scores if score is not None}
    return TrialOutcome(state, values if state == TrialState.COMPLETE else None, curve)


class AskTellSampler:
    """Proposes configurations and learns from records.

    The study lives in memory and is rebuilt from the store at every start. The sampler gets a new seed for each trial,
    derived from (seed, number), so only the store has to survive. The cost of a proposal does not grow with the number
    of trials.

    Args:
        space: the configurations that may be proposed.
        sampler: a name in `SAMPLERS`.
        seed: the plan's seed.
        arms: configurations to propose instead of the known good ones.
        objectives: the objectives of the search; two objectives search for the Pareto front.
        advised: strategies whose known good configurations come first, with the parameters of the first.
        warm: parameters from earlier sweeps, proposed before the known good configurations.
    """

    def __init__(
        self,
        space: Space,
        sampler: str,
        seed: int,
        arms: Sequence[Mapping[str, Value]] = (),
        objectives: Sequence[Objective] = (ACCURACY,),
        advised: Mapping[str, Config] = MappingProxyType({}),
        warm: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._space = space
        self._seed = seed
        self._objectives = tuple(objectives)
        self._directions = [
            StudyDirection.MAXIMIZE if objective.higher_is_better else StudyDirection.MINIMIZE
            for objective in objectives
        ]
        self._storage = BoundedStorage(self._directions, MAX_FITTED_TRIALS.get(sampler, 1))
        self._study = optuna.create_study(storage=self._storage, directions=self._directions)
        self._open: dict[str, optuna.Trial] = {}
        self._model = ASK_TELL_SAMPLERS.get(sampler)
        good = space.known_good(arms, advised)
        new = (params for params in fixed_configs(space, sampler, arms, advised) if params not in warm)
        self._remaining = chain(map(dict, warm), new)
        self._fixed: list[dict[str, Any]] = []  # the part of the iterator that has been consumed
        first = [*warm, *(params for params in good if params not in warm)]
        self._is_good = [params in good for params in first]

    @property
    def known_good(self) -> int:
        """Number of trials before the sampler's first proposal."""
        return len(self._is_good)

    def is_known_good(self, number: int) -> bool:
        """Whether trial `number` is a known good configuration: neither from an earlier sweep nor proposed."""
        return number < len(self._is_good) and self._is_good[number]

    def listed(self, number: int) -> dict[str, Any] | None:
        """Return the parameters of trial `number` if they are known in advance, else None. Changes nothing."""
        self._fixed.extend(islice(self._remaining, max(0, number + 1 - len(self._fixed))))
        return self._fixed[number] if number < len(self._fixed) else None

    def ask(self, trial: str, number: int) -> tuple[dict[str, Any], Config]:
        """Propose trial `number`; the known good configurations come first.

        Args:
            trial: the trial's name.
            number: the trial's number.

        Returns:
            The trial's parameters, and the configuration that they stand for.

        Raises:
            ValueError: the sampler has fewer configurations (see `available_trials`).
        """
        params = self.listed(number)
        if params is not None:
            return params, self.enqueue(trial, params)
        if self._model is None:
            raise ValueError(f"trial {number}: there are only {len(self._fixed)} combinations")
        seed = derive_seed(self._seed, "trial", number) % 2**32
        self._study.sampler = self._model(seed)
        with self._storage.bounded(seed):
            proposed = self._study.ask()
            config = self._space.suggest(proposed)
        self._open[trial] = proposed
        return dict(proposed.params), config

    def enqueue(self, trial: str, params: Mapping[str, Any]) -> Config:
        """Register a running trial with parameters from an earlier start, and return its configuration."""
        self._study.enqueue_trial(dict(params))
        self._study.sampler = RandomSampler(seed=0)  # draws nothing: every parameter is given
        enqueued = self._study.ask()
        self._open[trial] = enqueued
        return self._space.suggest(enqueued)

    def tell(self, record: Record) -> None:
        """Learn from a trial that was proposed or enqueued here."""
        running, outcome = self._open.pop(record.trial), trial_outcome(record, self._objectives)
        for epoch, value in outcome.intermediate.items():
            running.report(value, epoch)
        self._study.tell(running, outcome.values, state=outcome.state)

    def replay(self, records: Mapping[str, tuple[Mapping[str, Any], Record]]) -> None:
        """Learn from trials of earlier starts, given as parameters and record by trial name."""
        self._study.add_trials([self._frozen_trial(params, record) for params, record in records.values()])

    def export_sqlite(self, path: Path, name: str) -> None:
        """Write the study to an SQLite file that optuna-dashboard opens."""
        ended = self._study.get_trials(deepcopy=False, states=tuple(TRIAL_STATES.values()))
        labels = [objective.label for objective in self._objectives]
        dashboard.write_study(path, name, self._directions, labels, ended)

    def _frozen_trial(self, params: Mapping[str, Any], record: Record) -> optuna.trial.FrozenTrial:
        fixed = optuna.trial.FixedTrial(dict(params))
        self._space.suggest(fixed)
        outcome = trial_outcome(record, self._objectives)
        return optuna.create_trial(
            params=dict(params),
            distributions=fixed.distributions,
            state=outcome.state,
            values=outcome.values,
            intermediate_values=outcome.intermediate,
            user_attrs={"trial": record.trial},
        )


def fixed_configs(
    space: Space,
    sampler: str,
    arms: Sequence[Mapping[str, Value]] = (),
    advised: Mapping[str, Config] = MappingProxyType({}),
) -> Iterator[dict[str, Any]]:
    """Yield the configurations known in advance: the known good ones, then an enumerating sampler's, each once."""
    known = space.known_good(arms, advised)
    rest = ENUMERATING_SAMPLERS[sampler](space) if sampler in ENUMERATING_SAMPLERS and not arms else iter(())
    return chain(known, (params for params in rest if params not in known))


def available_trials(space: Space, sampler: str, limit: int) -> int:
    """Return the number of trials, at most `limit`, that there are configurations for."""
    return limit if sampler in ASK_TELL_SAMPLERS else sum(1 for _ in islice(fixed_configs(space, sampler), limit))
