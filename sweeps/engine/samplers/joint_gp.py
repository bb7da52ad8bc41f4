"""Gaussian-process sampler over conditional parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import GPSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState


class JointGPSampler(GPSampler):
    """Optuna's Gaussian process over the union of all parameters; Optuna's own covers only those that every trial has.

    A parameter that a trial does not have, such as another optimizer's learning rate, counts as the middle of its
    range. A proposed value for a parameter that does not exist is ignored.

    Args:
        seed: seed of the proposals.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=10, warn_independent_sampling=False)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Override `GPSampler`."""
        union: dict[str, BaseDistribution] = {}
        for finished in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            union.update(finished.distributions)
        return {name: union[name] for name in sorted(union) if not union[name].single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Override `GPSampler`."""
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))
        completed = optuna.create_study(directions=study.directions)
        completed.add_trials([_fill_in(other, search_space) for other in trials if other.number != trial.number])
        new = completed.ask()
        return super().sample_relative(completed, completed.trials[new.number], search_space)


def _fill_in(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """Return a trial with a value for every parameter."""
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
