"""Finals: the best recipes on new seeds and new draws, then, their ranking fixed, on the test part."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from sweeps.engine.plan import Plan
from sweeps.engine.storage.store import Trial
from xfer.objectives import ACCURACY, Objective, pareto_mask
from xfer.recipe import recipe_from_dict
from xfer.records import Record


def select_finalists(records: Iterable[Record], count: int, objectives: Sequence[Objective] = (ACCURACY,)) -> list[str]:
    """The `count` best finished search trials by the first objective, one of each recipe; ties to the earlier one.

    With two objectives those that no other beats in both come first.
    """
    finished = [record for record in records if record.phase == "search" and record.status == "finished"]
    scores = {record.trial: tuple(final_score(record, each) for each in objectives) for record in finished}
    front = dict(
        zip(scores, pareto_mask(list(scores.values())) if objectives[1:] else [True] * len(scores), strict=True)
    )
    best: dict[str, Record] = {}
    for record in sorted(finished, key=lambda one: (not front[one.trial], -scores[one.trial][0], one.trial)):
        best.setdefault(record.key, record)
    return [record.trial for record in best.values()][:count]


def finalist_trials(finalists: Sequence[Record], plan: Plan, redraws: bool) -> list[Trial]:
    """The finalists' runs: each recipe on `plan.seeds` seeds that the search did not use.

    Seed by seed rather than finalist by finalist, so that a sweep that is cut short has compared all of them. With
    `redraws` each seed also draws the validation part anew, the same one for every finalist.
    """
    recipes = {record.trial: recipe_from_dict(record.recipe) for record in finalists}
    return [
        Trial(f"{name}-s{seed}", "final", {}, recipe.with_seeds(plan.seed + seed, seed if redraws else 0).as_dict())
        for seed in range(1, plan.seeds + 1)
        for name, recipe in recipes.items()
    ]


def final_rounds(plan: Plan, concurrent: int) -> int:
    """Return how many rounds of `concurrent` trials the finals of a plan take."""
    return math.ceil(plan.finalists * plan.seeds / concurrent)


def search_trial_name(trial: str) -> str:
    """The search trial that a final run repeats, or the trial itself.

    >>> search_trial_name("0007-s2"), search_trial_name("0007")
    ('0007', '0007')
    """
    return trial.partition("-")[0]


def finalist_runs(records: Iterable[Record], finalists: Sequence[str]) -> dict[str, list[Record]]:
    """The finished final runs of each finalist."""
    finished = [record for record in records if record.phase == "final" and record.status == "finished"]
    return {name: [record for record in finished if search_trial_name(record.trial) == name] for name in finalists}


def winner_metrics(
    winner: Record, records: Iterable[Record], objectives: Sequence[Objective] = (ACCURACY,)
) -> dict[str, float]:
    """What the winner's recipe reached, as means over its final runs where there are any.

    Accuracy is among it whatever was searched for, and of the test part all that was measured there.
    """
    found = finalist_runs(records, [search_trial_name(winner.trial)])[search_trial_name(winner.trial)] or [winner]
    reached = {
        each.metric: [value for record in found if (value := each.value(record.epochs)) is not None]
        for each in dict.fromkeys((ACCURACY, *objectives))
    }
    tests = [record.test for record in found if record.test is not None]
    for name in ("accuracy", "balanced_accuracy", "noisy_accuracy"):
        reached[f"test_{name}"] = [value for test in tests if (value := getattr(test, name)) is not None]
    return {name: fmean(values) for name, values in reached.items() if values}


def rank_finalists(runs: Mapping[str, Sequence[Record]], objective: Objective = ACCURACY) -> list[str]:
    """Finalists by their mean score over seeds, the best first; those without a finished run are left out."""
    means = {name: fmean(final_score(record, objective) for record in found) for name, found in runs.items() if found}
    return sorted(means, key=lambda name: (-means[name], name))


def final_score(record: Record, objective: Objective) -> float:
    """What a finished run has come to, higher is better; the lowest there is where it was not measured."""
    score = objective.score(record.epochs)
    return -math.inf if score is None else score
