"""Samplers: who proposes the next configuration, over an Optuna study rebuilt from the store."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweeps.engine.samplers import dashboard
from sweeps.engine.samplers.bounded_storage import BoundedStorage, JointGPSampler
from sweeps.engine.samplers.grid import grid
from sweeps.engine.search_space.distributions import Config
from sweeps.engine.search_space.space import Space
from xfer.choices import Value
from xfer.objectives import ACCURACY, Objective
from xfer.records import Record
from xfer.seeding import derive_seed

optuna.logging.set_verbosity(logging.WARNING)


def tpe(seed: int) -> BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), the parameters of one choice modelled together.

    Without `group`, conditional parameters would fall back to independent sampling without a word; with
    `constant_liar`, trials that are still running keep others away from where they are.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=10, seed=seed)


def random(seed: int) -> BaseSampler:
    """Every configuration as likely as any other: the yardstick, and the right choice for a few trials."""
    return RandomSampler(seed=seed)


def gp(seed: int) -> BaseSampler:
    """A Gaussian process (Mockus 1975) with logarithmic expected improvement (Ament et al. 2023), over all parameters.

    It learns from trials that finished, not from pruned ones, and takes seconds for a proposal where `tpe` takes
    milliseconds: for few and long trials.
    """
    return JointGPSampler(seed)


ASK_TELL_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {f.__name__: f for f in (tpe, random, gp)}
"""Those that draw a configuration, from a seed and from what a study knows."""

LEARNING_SAMPLERS = ("tpe", "gp")
"""Those whose next configuration depends on what came of the ones before."""

ENUMERATING_SAMPLERS: dict[str, Callable[[Space], Iterator[dict[str, Any]]]] = {f.__name__: f for f in (grid,)}
"""Those that know all their configurations beforehand, and come to an end."""

SAMPLERS = (*ASK_TELL_SAMPLERS, *ENUMERATING_SAMPLERS)

MAX_FITTED_TRIALS: dict[str, int] = {"tpe": 150, "random": 1, "gp": 100}
"""On so many of the trials that have ended a model is fitted (see `fitted.py`): its cost does not grow any further.

Processor time of a proposal in the default space, with 500 trials in the study: `tpe` 11 ms, `gp` 0.4 s."""

TRIAL_STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial went, as a study is told."""

    state: TrialState
    values: list[float] | None
    """One for each objective, in its own unit and direction; None unless the trial finished."""
    intermediate: dict[int, float]
    """By epoch. Empty where there are two objectives: Optuna knows intermediate values of one only, and its TPE fails
    on a pruned trial that has some. Without them it puts such a trial behind all that finished, which is true."""


def trial_outcome(record: Record, objectives: Sequence[Objective]) -> TrialOutcome:
    """How a trial went.

    A pruned trial is pruned, with all its intermediate values: an early score must not compete with final ones. A
    failed one teaches only where not to look again, and so does one that was not measured as it should have been.
    """
    state = TRIAL_STATES[record.status]
    values = [value for each in objectives if (value := each.value(record.epochs)) is not None]
    if state == TrialState.COMPLETE and len(values) < len(objectives):
        state = TrialState.FAIL
    curve: dict[int, float] = {}
    if len(objectives) == 1:
        scores = enumerate(objectives[0].scores(record.epochs), start=1)
        curve = {epoch: objectives[0].to_score(score) for epoch, score in scores if score is not None}
    return TrialOutcome(state, values if state == TrialState.COMPLETE else None, curve)


class AskTellSampler:
    """Proposes configurations and learns from records.

    The study lives in memory. It is rebuilt from the store at every start, and the sampler is seeded anew for each
    trial from (seed, number), so nothing but the store has to survive. What a proposal costs does not grow with the
    number of trials.

    Args:
        space: what may be proposed.
        sampler: a name in `SAMPLERS`.
        seed: the plan's.
        arms: what to propose instead of the known-good configurations.
        objectives: what is searched for; with two of them whatever no other trial beats in both.
        advised: the strategies whose known-good configurations come first.
        warm: parameters from elsewhere to begin with, before the known-good configurations.
    """

    def __init__(
        self,
        space: Space,
        sampler: str,
        seed: int,
        arms: Sequence[Mapping[str, Value]] = (),
        objectives: Sequence[Objective] = (ACCURACY,),
        advised: Sequence[str] = (),
        warm: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._space = space
        self._seed = seed
        self._objectives = tuple(objectives)
        self._directions = [
            StudyDirection.MAXIMIZE if each.higher_is_better else StudyDirection.MINIMIZE for each in objectives
        ]
        self._storage = BoundedStorage(self._directions, MAX_FITTED_TRIALS.get(sampler, 1))
        self._study = optuna.create_study(storage=self._storage, directions=self._directions)
        self._open: dict[str, optuna.Trial] = {}
        self._model = ASK_TELL_SAMPLERS.get(sampler)
        good = space.known_good(arms, advised)
        new = (params for params in fixed_configs(space, sampler, arms, advised) if params not in warm)
        self._listed = chain(map(dict, warm), new)
        self._first: list[dict[str, Any]] = []  # as much of it as was asked for
        begins = [*warm, *(params for params in good if params not in warm)]
        self._is_good = [params in good for params in begins]

    @property
    def known_good(self) -> int:
        """How many trials come before the sampler's first proposal."""
        return len(self._is_good)

    def is_known_good(self, number: int) -> bool:
        """Whether trial `number` is a known-good configuration: neither taken from elsewhere nor proposed."""
        return number < len(self._is_good) and self._is_good[number]

    def listed(self, number: int) -> dict[str, Any] | None:
        """The parameters of trial `number` where they are known beforehand, else None; nothing is asked or noted."""
        self._first.extend(islice(self._listed, max(0, number + 1 - len(self._first))))
        return self._first[number] if number < len(self._first) else None

    def ask(self, trial: str, number: int) -> tuple[dict[str, Any], Config]:
        """The sampler's parameters for trial `number`, and the configuration behind them; `known_good` come first.

        Raises:
            ValueError: the sampler's list ends before that (see `available_trials`).
        """
        params = self.listed(number)
        if params is not None:
            return params, self.enqueue(trial, params)
        if self._model is None:
            raise ValueError(f"trial {number}: there are only {len(self._first)} combinations")
        seed = derive_seed(self._seed, "trial", number) % 2**32
        self._study.sampler = self._model(seed)
        with self._storage.bounded(seed):
            asked = self._study.ask()
            config = self._space.suggest(asked)
        self._open[trial] = asked
        return dict(asked.params), config

    def enqueue(self, trial: str, params: Mapping[str, Any]) -> Config:
        """Take note of a trial that was proposed elsewhere or earlier and is running now."""
        self._study.enqueue_trial(dict(params))
        self._study.sampler = RandomSampler(seed=0)  # asked for nothing: every parameter is given
        asked = self._study.ask()
        self._open[trial] = asked
        return self._space.suggest(asked)

    def tell(self, record: Record) -> None:
        """Learn from a trial that this proposer proposed or adopted."""
        asked, ending = self._open.pop(record.trial), trial_outcome(record, self._objectives)
        for epoch, value in ending.intermediate.items():
            asked.report(value, epoch)
        self._study.tell(asked, ending.values, state=ending.state)

    def replay(self, records: Mapping[str, tuple[Mapping[str, Any], Record]]) -> None:
        """Learn from trials of earlier starts: their parameters and records, by name."""
        self._study.add_trials([self._frozen(params, record) for params, record in records.values()])

    def export_sqlite(self, path: Path, name: str) -> None:
        """Write the study to an SQLite file that optuna-dashboard opens. Nothing here reads it back."""
        ended = self._study.get_trials(deepcopy=False, states=tuple(TRIAL_STATES.values()))
        dashboard.write_study(path, name, self._directions, [each.label for each in self._objectives], ended)

    def _frozen(self, params: Mapping[str, Any], record: Record) -> optuna.trial.FrozenTrial:
        fixed = optuna.trial.FixedTrial(dict(params))
        self._space.suggest(fixed)
        ending = trial_outcome(record, self._objectives)
        return optuna.create_trial(
            params=dict(params),
            distributions=fixed.distributions,
            state=ending.state,
            values=ending.values,
            intermediate_values=ending.intermediate,
            user_attrs={"trial": record.trial},
        )


def fixed_configs(
    space: Space, sampler: str, arms: Sequence[Mapping[str, Value]] = (), advised: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """What is proposed before any model is asked: known good configurations, then a sampler's list, each once."""
    known = space.known_good(arms, advised)
    rest = ENUMERATING_SAMPLERS[sampler](space) if sampler in ENUMERATING_SAMPLERS and not arms else iter(())
    return chain(known, (params for params in rest if params not in known))


def available_trials(space: Space, sampler: str, most: int) -> int:
    """How many of `most` trials there are configurations for."""
    return most if sampler in ASK_TELL_SAMPLERS else sum(1 for _ in islice(fixed_configs(space, sampler), most))
