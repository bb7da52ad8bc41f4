"""Warm start: a new sweep first tries the best recipes of earlier sweeps on similar data.

It reads the earlier sweeps in the same storage: the measurements of their data, and the validation scores of their
search trials. It never reads test results, and it skips a sweep whose trials saw images of the new sweep's test part.
An earlier sweep on the same pack and seed has distance 0. Its scores are from the same validation part that the new
sweep selects on, so its recipes are not independent evidence.

The transferred recipes are stored in plan.json, so a resumed sweep uses the same ones, even if sweeps were added to the
storage in the meantime. They are tried first. Like any proposal of a sampler they may be pruned, because they were
selected on other data; the known-good recipes that follow stay protected from early stopping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.engine import selection
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.presearch.advice import measure_dataset
from sweeps.engine.presearch.dataset_distance import MAX_DISTANCE, DatasetView, dataset_distance
from sweeps.engine.search_space.space import Space
from sweeps.engine.search_space.suggest import NearestTrial
from sweeps.engine.storage.store import Store, list_sweeps
from xfer.advice.dataset_profile import profile_from_dict
from xfer.choices import default_parameters
from xfer.data.pack import Progress, load_pack
from xfer.data.split import split_pack
from xfer.objectives import parse_objectives
from xfer.recipe import CHOICE_TABLES, recipe_from_dict
from xfer.records import Record
from xfer.storage import local_cache, object_store

MAX_PER_SWEEP = 3
"""Maximum number of recipes from one sweep; at most a quarter of its finished trials, rounded up."""
MAX_TOTAL = 5
"""Maximum number of recipes in total; at most half of the new sweep's trials, rounded up."""


@dataclass(frozen=True)
class PastSweep:
    """What a warm start needs to know about a sweep."""

    name: str
    data: tuple[str, int]
    """Hash of the pack and number of training images."""
    seed: int
    objective: tuple[str, ...]
    view: DatasetView | None
    """Measurements of its data, if any."""
    best: tuple[Record, ...] = ()
    """Its best finished search trials, best first, by its own objective on validation."""


@dataclass(frozen=True)
class Neighbour:
    """An earlier sweep and the distance of its data from the new sweep's."""

    sweep: PastSweep
    distance: float


def nearest_sweeps(current: PastSweep, others: Iterable[PastSweep]) -> list[Neighbour]:
    """Return the sweeps with the same objective and a known distance, nearest first, without a limit on the distance.

    Args:
        current: the new sweep.
        others: earlier sweeps; those without finished trials are ignored.
    """
    candidates = [sweep for sweep in others if sweep.best and sweep.objective == current.objective]
    neighbours = [
        Neighbour(sweep, distance) for sweep in candidates if (distance := _distance(current, sweep)) is not None
    ]
    return sorted(neighbours, key=lambda neighbour: (neighbour.distance, neighbour.sweep.name))


def _distance(one: PastSweep, other: PastSweep) -> float | None:
    """Return the distance between the data of two sweeps, or None if one was not measured."""
    if one.data == other.data:
        return 0.0
    return dataset_distance(one.view, other.view) if one.view and other.view else None


def transferred_configs(
    neighbours: Sequence[Neighbour], space: Space, weights: Mapping[str, str], most: int
) -> dict[str, Any]:
    """Translate the best recipes of similar sweeps into a space.

    Args:
        neighbours: similar sweeps, nearest first.
        space: search space of the new sweep.
        weights: SHA-256 of the weights of each competing backbone.
        most: maximum number of recipes.

    Returns:
        Plain data for plan.json: `from`, the sweeps with distances and trials, and `params`, the parameters in this
        space.
    """
    sources: list[dict[str, Any]] = []
    params: list[dict[str, Any]] = []
    for neighbour in neighbours:
        trials = []
        for record in neighbour.sweep.best:
            translated = translate_recipe(record.recipe, space, weights)
            if translated is not None and translated not in params and len(params) < most:
                params.append(translated)
                trials.append(record.trial)
        if trials:
            sources.append({"sweep": neighbour.sweep.name, "distance": neighbour.distance, "trials": trials})
    return {"from": sources, "params": params}


def translate_recipe(recipe: Mapping[str, Any], space: Space, weights: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the parameters of a space that come nearest to a recipe, or None if the recipe does not fit the space.

    A recipe fits if its strategy, its network with the same weights, and its optimizer compete; a learning rate means
    nothing with another optimizer. All other values are moved into the ranges of the space. The recipe is used instead
    of the earlier sampler's parameters, because those omit fixed values.

    Args:
        recipe: recipe as plain data.
        space: search space of the new sweep.
        weights: SHA-256 of the weights of each competing backbone.
    """
    backbone = str(recipe["backbone"])
    if recipe["weights"] and recipe["weights"] != weights.get(backbone):
        return None
    values = {name: value for name, value in recipe.items() if not isinstance(value, Mapping)}
    for kind, table in CHOICE_TABLES.items():
        choice = recipe.get(kind)
        if choice is not None:  # recipes of earlier versions lack some settings
            if choice["name"] not in table:
                return None
            values |= {name: choice[name] for name in default_parameters(table[choice["name"]]) if name in choice}
            values[kind] = choice["name"]
    trial = NearestTrial(values)
    config = space.suggest(trial)
    same = all(config[kind] == values[kind] for kind in ("strategy", "optimizer")) and config["backbone"] == backbone
    return trial.suggested if same else None


def recover_params(recipe: Mapping[str, Any], prepared: Prepared) -> dict[str, Any] | None:
    """Return the parameters that a recipe of this sweep was built from; None if they cannot be told from the recipe."""
    weights = {backbone.name: backbone.sha256 for backbone in prepared.backbones}
    params = translate_recipe(recipe, prepared.space, weights)
    if params is None:
        return None
    same = prepared.recipe(prepared.space.configured(params)).id == recipe_from_dict(recipe).id
    return params if same else None


def find_warm_start(
    prepared: Prepared, store: Store, advice: Mapping[str, Any], progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Find recipes for a new sweep in the earlier sweeps of its storage.

    Args:
        prepared: the plan with its data and weights.
        store: the new sweep's store; the earlier sweeps are in the same folder.
        advice: the advice for the new sweep, whose measurements are used if it has any.
        progress: called with the number of measured images and their total, if they have to be measured here.

    Returns:
        Plain data for plan.json: `from`, the sweeps with distances and trials; `params`, the parameters to try first;
        `passed_over`, the skipped sweeps with reasons; `why_none`, the reason if there are no recipes; `measured`, the
        measurements, if the advice has none.
    """
    measurement = {} if "measured" in advice else measure_dataset(prepared, progress)
    current = PastSweep(
        name=store.name,
        data=(prepared.pack.hash, len(prepared.split.train)),
        seed=prepared.plan.seed,
        objective=prepared.plan.objective,
        view=_dataset_view(measurement if "measured" in measurement else advice, prepared.backbones[0].sha256),
    )
    passed_over: dict[str, str] = {}
    ranked = nearest_sweeps(current, _earlier_sweeps(store, passed_over))
    similar = []
    for neighbour in ranked:
        if neighbour.distance <= MAX_DISTANCE:
            reason = _leakage_reason(neighbour.sweep, prepared, store.folder.parent)
            if reason:
                passed_over[neighbour.sweep.name] = reason
            else:
                similar.append(neighbour)
    weights = {backbone.name: backbone.sha256 for backbone in prepared.backbones}
    most = min(MAX_TOTAL, math.ceil(prepared.plan.trials / 2))
    transferred = transferred_configs(similar, prepared.space, weights, most)
    if not transferred["params"]:
        transferred["why_none"] = measurement.get("why_none") or _why_none(ranked, similar, passed_over)
    measured = {"measured": measurement["measured"]} if "measured" in measurement else {}
    return {**transferred, "passed_over": passed_over, **measured}


def warm_start_params(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the transferred parameters in a plan.json, which its sweep tries first."""
    return [dict(params) for params in plan.get("warm_start", {}).get("params", [])]


def summary_line(plan: Mapping[str, Any]) -> str:
    """Return the warm start in a plan.json as one line; empty without a warm start."""
    warm = plan.get("warm_start", {})
    if not warm:
        return ""
    sources = [
        f"{len(source['trials'])} of {source['sweep']} (distance {source['distance']:.2f}; "
        f"trial{'s' if source['trials'][1:] else ''} {', '.join(source['trials'])})"
        for source in warm["from"]
    ]
    skipped = [f"{name} was skipped: {reason}" for name, reason in warm["passed_over"].items()]
    if not sources:
        return "; ".join([f"no recipes: {warm['why_none']}", *skipped])
    return "; ".join([f"starts with recipes from similar data: {', '.join(sources)}", *skipped])


def _earlier_sweeps(store: Store, passed_over: dict[str, str]) -> Iterable[PastSweep]:
    """Yield the other sweeps in a storage; adds those that cannot be read, with the reason, to `passed_over`."""
    for other in list_sweeps(store.folder.parent):
        if other.name == store.name:
            continue
        try:
            yield read_sweep(other)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            passed_over[other.name] = f"it cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:200]})"


def read_sweep(store: Store) -> PastSweep:
    """Read an earlier sweep from its store.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OSError: its files are damaged or from another version.
    """
    plan = store.plan() or {}
    objective = tuple(plan.get("objective", ["accuracy"]))
    objectives = parse_objectives(",".join(objective))
    records = [record for record in store.records() if record.phase == "search" and record.status == "finished"]
    best = selection.select_best(records, min(MAX_PER_SWEEP, math.ceil(len(records) / 4)), objectives)
    by_name = {record.trial: record for record in records}
    source = plan["advice"] if "measured" in plan.get("advice", {}) else plan.get("warm_start", {})
    return PastSweep(
        name=store.name,
        data=(plan["data"]["pack"], plan["data"]["train"]),
        seed=plan["seed"],
        objective=objective,
        view=_dataset_view(source, plan["backbones"][0]["weights"]),
        best=tuple(by_name[name] for name in best if objectives[0].score(by_name[name].epochs) is not None),
    )


def _dataset_view(source: Mapping[str, Any], weights: str) -> DatasetView | None:
    return DatasetView(profile_from_dict(source["measured"]), weights) if "measured" in source else None


def _leakage_reason(earlier: PastSweep, prepared: Prepared, storage: Path) -> str:
    """Return why a sweep must not be used, because its trials saw or may have seen test images; '' if they did not."""
    if (earlier.data[0], earlier.seed) == (prepared.pack.hash, prepared.plan.seed):
        return ""
    packs = storage / "packs" if object_store.is_remote(storage) else prepared.pack.folder.parent
    folder = packs / earlier.data[0][:16]
    if not object_store.exists(folder / "pack.json"):
        return "its images are gone, so it is unknown whether it saw images of this test set"
    try:
        pack = load_pack(local_cache.fetch_cached(folder, "pack.json"))
        split = split_pack(pack, earlier.seed)
    except (ValueError, KeyError, OSError) as error:
        return f"its images cannot be read ({error})"
    theirs = {pack.digests[index] for index in (*split.train, *split.val)}
    ours = {prepared.pack.digests[index] for index in (*prepared.split.train, *prepared.split.val)}
    leaked = ({prepared.pack.digests[index] for index in prepared.split.test} - ours) & theirs
    return f"its trials saw {len(leaked)} images of this sweep's test set" if leaked else ""


def _why_none(ranked: Sequence[Neighbour], similar: Sequence[Neighbour], passed_over: Mapping[str, str]) -> str:
    if similar:
        return "the best recipes from similar data do not fit this sweep's strategies, networks and optimizers"
    if not ranked:
        return "no earlier sweep in this storage has the same objective, measured data and finished trials"
    nearest = ranked[0]
    if nearest.sweep.name in passed_over:
        return "no other sweep in this storage has similar data"
    return (
        f"no sweep in this storage has similar data: the nearest, {nearest.sweep.name}, has distance "
        f"{nearest.distance:.2f}, above the limit of {MAX_DISTANCE}"
    )
