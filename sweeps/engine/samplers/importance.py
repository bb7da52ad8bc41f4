"""Importance of every choice of a search, by Optuna's conditional PED-ANOVA, with what chance would reach."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from sweeps.reporting.coverage import parse_range
from sweeps.reporting.importance import MIN_TRIALS, top_trials
from sweeps.reporting.results import Importance, Importances

optuna.logging.set_verbosity(logging.WARNING)

MAX_TRIALS = 200
"""Maximum number of trials that importances are computed from, which bounds the time to about two seconds."""
PERMUTATIONS = 50
"""Number of times that results are exchanged at random between trials."""
CHANCE_QUANTILE = 0.95

_TINY = 1e-12


def choice_importances(
    params: Sequence[Mapping[str, Any]], scores: Sequence[float], space: Mapping[str, str]
) -> Importances | None:
    """Return the importance of every parameter for being among the best trials.

    Args:
        params: the sampler's parameters of N finished trials; conditional ones are absent where they do not exist.
        scores: [N], higher is better.
        space: the distribution of every axis as plan.json describes it.

    Returns:
        None for fewer than `MIN_TRIALS` trials, and if no parameter has two values.
    """
    names = [name for name in dict.fromkeys(name for of in params for name in of) if _varies(name, params)]
    if len(params) < MIN_TRIALS or not names:
        return None
    finished = len(params)
    # Evenly spaced in the order of the scores, which keeps their quantiles.
    order = np.argsort(np.asarray(scores, dtype=np.float64), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), MAX_TRIALS)).round().astype(np.int64)]
    params, values = [params[index] for index in chosen.tolist()], np.asarray(scores, dtype=np.float64)[chosen]
    names = [name for name in names if _varies(name, params)]
    top, random = top_trials(len(params)), np.random.default_rng(0)
    study = _study(names, params, space)
    importances = _importances(study, names, values, top)
    exchanged = [_importances(study, names, random.permutation(values), top) for _ in range(PERMUTATIONS)]
    chance = np.maximum(np.quantile(exchanged, CHANCE_QUANTILE, axis=0), _TINY)
    total = max(float(importances.sum()), _TINY)
    found = [
        Importance(name, float(one / total), float(one / by_chance), sum(name in of for of in params))
        for name, one, by_chance in zip(names, importances, chance, strict=True)
    ]
    return Importances(tuple(sorted(found, key=lambda one: (-one.share, one.choice))), finished, len(params), top)


def _study(names: Sequence[str], params: Sequence[Mapping[str, Any]], space: Mapping[str, str]) -> optuna.Study:
    """Return a study in memory with these trials; their values are given by the target of the evaluator."""
    distributions = {name: _distribution(name, [of[name] for of in params if name in of], space) for name in names}
    study = optuna.create_study()
    for of in params:
        own = {name: of[name] for name in names if name in of}
        study.add_trial(
            optuna.create_trial(params=own, distributions={name: distributions[name] for name in own}, value=0.0)
        )
    return study


def _importances(
    study: optuna.Study, names: Sequence[str], scores: NDArray[np.float64], top: int
) -> NDArray[np.float64]:
    evaluator = PedAnovaImportanceEvaluator(target_quantile=min(top / len(scores), 0.99))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that targets are minimised, and that few trials have a parameter
        found = get_param_importances(
            study,
            evaluator=evaluator,
            params=[*names],
            target=lambda trial: -float(scores[trial.number]),
            normalize=False,
        )
    return np.array([found[name] for name in names])


def _varies(name: str, params: Sequence[Mapping[str, Any]]) -> bool:
    return len({repr(of[name]) for of in params if name in of}) > 1


def _distribution(name: str, values: Sequence[Any], space: Mapping[str, str]) -> BaseDistribution:
    """Return a distribution with all values that were tried: the described range if there is one, else the values."""
    texts = [
        text for axis, text in space.items() if axis == name or axis.endswith(f".{name}") or name.endswith(f".{axis}")
    ]
    described = next(filter(None, map(parse_range, texts)), None)
    if described is None or not all(isinstance(value, int | float) for value in values):
        return CategoricalDistribution(sorted(set(values), key=repr))
    low, high, log = described
    low, high = min(low, *values), max(high, *values)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(low), int(high), log=log and low >= 1)
    return FloatDistribution(low, high, log=log and low > 0)
