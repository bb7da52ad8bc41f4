"""Finals: the best recipes on new seeds and new draws, then, their ranking fixed, on the test part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from sweeps.engine.plan import Plan
from sweeps.engine.store import Trial
from xfer.recipe import recipe_from
from xfer.records import Record


def choose(records: Iterable[Record], count: int) -> list[str]:
    """The `count` best finished search trials by validation accuracy, one of each recipe; ties to the earlier one."""
    finished = [record for record in records if record.phase == "search" and record.status == "finished"]
    best: dict[str, Record] = {}
    for record in sorted(finished, key=lambda record: (-(record.val_accuracy or 0.0), record.trial)):
        best.setdefault(record.key, record)
    return [record.trial for record in best.values()][:count]


def trials(finalists: Sequence[Record], plan: Plan, redraws: bool) -> list[Trial]:
    """The finalists' runs: each recipe on `plan.seeds` seeds that the search did not use.

    Seed by seed rather than finalist by finalist, so that a sweep that is cut short has compared all of them. With
    `redraws` each seed also draws the validation part anew, the same one for every finalist.
    """
    recipes = {record.trial: recipe_from(record.recipe) for record in finalists}
    return [
        Trial(f"{name}-s{seed}", "final", {}, recipe.repeated(plan.seed + seed, seed if redraws else 0).as_dict())
        for seed in range(1, plan.seeds + 1)
        for name, recipe in recipes.items()
    ]


def of(trial: str) -> str:
    """The search trial that a final run repeats, or the trial itself.

    >>> of("0007-s2"), of("0007")
    ('0007', '0007')
    """
    return trial.partition("-")[0]


def runs(records: Iterable[Record], finalists: Sequence[str]) -> dict[str, list[Record]]:
    """The finished final runs of each finalist."""
    finished = [record for record in records if record.phase == "final" and record.status == "finished"]
    return {name: [record for record in finished if of(record.trial) == name] for name in finalists}


def metrics(winner: Record, records: Iterable[Record]) -> dict[str, float]:
    """What the winner's recipe reached, as means over its final runs where there are any."""
    found = runs(records, [of(winner.trial)])[of(winner.trial)] or [winner]
    tests = [record.test.accuracy for record in found if record.test is not None]
    val = fmean(record.val_accuracy or 0.0 for record in found)
    return {"val_accuracy": val, **({"test_accuracy": fmean(tests)} if tests else {})}


def rank(runs: Mapping[str, Sequence[Record]]) -> list[str]:
    """Finalists by their mean validation accuracy over seeds, the best first; those without a finished run left out."""
    means = {name: fmean(record.val_accuracy or 0.0 for record in found) for name, found in runs.items() if found}
    return sorted(means, key=lambda name: (-means[name], name))
