"""Advice: which strategies a new sweep tries first and adds to its search, from measurements before any training.

Where classes are imbalanced, every entry of `balance` competes too.

The advice is decided once, at the first start, and stored in plan.json, so a resumed sweep has the same search space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sweeps.engine.planning.plan_file import ADVISED_KEYS, describe_plan
from sweeps.engine.planning.prepare import add_balances, add_strategies, training_imbalance
from sweeps.engine.planning.prepared import Prepared, common_images_per_class
from sweeps.engine.presearch.frozen_body import frozen_body
from sweeps.engine.samplers.ask_tell import ENUMERATING_SAMPLERS
from sweeps.engine.search_space.distributions import Config
from xfer.advice.advisor import advise
from xfer.data.pack import Progress
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.feature_extraction.frozen_features import FrozenFeatures
from xfer.methods.balance import BALANCES
from xfer.methods.descriptions import explain_strategy


def recommend_strategies(
    prepared: Prepared, progress: Progress = lambda done, total: None, cache: FeatureCache | None = None
) -> dict[str, Any]:
    """Return the advice of `xfer.advice.advisor` for a sweep's data and first backbone, as plain data for plan.json.

    Args:
        prepared: the plan with its data and weights.
        progress: called with the number of measured images and their total.
        cache: where the features of the images are read and stored.

    Returns:
        The advice with `order`, the recommended strategies that compete; `added`, those of them that compete because
        they are recommended; and, if there are any, `requested`, the keys of plan.json that they change as they were.
        Empty if there is nothing to order: a single strategy, explicit arms, no pretrained weights, or advice switched
        off. `why_none`, the reason, if the data or the network cannot be measured. If classes are imbalanced, also
        `imbalance`, with names and counts, and `balances`, the entries of `balance` that compete because of it.
    """
    plan, backbone, competing = prepared.plan, prepared.backbones[0], prepared.space.strategies()
    if not plan.advise or plan.arms:
        return {}
    measures = backbone.file is not None and len(competing) > 1
    advice = measure_dataset(prepared, progress, cache) if measures else {}
    if "recommended" in advice:
        names = _recommended_names(advice)
        wider = add_strategies(prepared, names) if _leaves_strategies_open(prepared) else prepared
        added = [name for name in wider.space.strategies() if name not in competing]
        advice |= {"order": [name for name in names if name in wider.space.strategies()], "added": added}
    if (imbalance := training_imbalance(prepared)) is not None:
        advice |= {"imbalance": asdict(imbalance)}
        if "balance" not in plan.edits and plan.sampler not in ENUMERATING_SAMPLERS:
            advice["balances"] = [*BALANCES]
    if advice.get("added") or advice.get("balances"):
        advice["requested"] = _advised_keys(prepared)
    return advice


def apply_advice(prepared: Prepared, advice: Mapping[str, Any]) -> Prepared:
    """Return a sweep with the strategies and entries of `balance` that its stored advice has added to the search."""
    if advice.get("added"):
        prepared = add_strategies(prepared, advice["added"])
    return add_balances(prepared, advice["balances"]) if advice.get("balances") else prepared


def advised_plan(plan: Mapping[str, Any], prepared: Prepared, advice: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of plan.json with an advice, and the search space that follows from it.

    Args:
        plan: the content of plan.json without advice.
        prepared: the plan with its data and weights.
        advice: as `recommend_strategies` returned it.
    """
    return {**plan, **_advised_keys(apply_advice(prepared, advice)), "advice": dict(advice)}


def _advised_keys(prepared: Prepared) -> dict[str, Any]:
    plan = describe_plan(prepared)
    return {name: plan[name] for name in ADVISED_KEYS if name in plan}


def _leaves_strategies_open(prepared: Prepared) -> bool:
    """Whether the user has left the choice of strategies to the sweep. A grid enumerates what it was given."""
    plan = prepared.plan
    return not plan.strategies and "strategy" not in plan.edits and plan.sampler not in ENUMERATING_SAMPLERS


def measure_dataset(
    prepared: Prepared, progress: Progress = lambda done, total: None, cache: FeatureCache | None = None
) -> dict[str, Any]:
    """Run the advisor on a sweep's data, even if advice is switched off.

    Args:
        prepared: the plan with its data and weights.
        progress: called with the number of measured images and their total.
        cache: where the features of the images are read and stored.

    Returns:
        The advice as plain data, or only `why_none`, the reason, if nothing can be measured.
    """
    plan, backbone = prepared.plan, prepared.backbones[0]
    if backbone.file is None:
        return {"why_none": "no pretrained network competes, so the data cannot be measured"}
    try:
        return advise(
            prepared.pack,
            backbone.name,
            backbone.file,
            backbone.args,
            plan.seed,
            progress=progress,
            images_per_class=common_images_per_class(prepared.space),
            features=_cached_features(prepared, backbone.name, cache),
        ).as_dict()
    except ValueError as error:
        return {"why_none": str(error)}
    except Exception as error:  # any error in a network's code; a sweep can run without advice
        return {"why_none": f"{type(error).__name__}: {error}"}


def _cached_features(prepared: Prepared, backbone: str, cache: FeatureCache | None) -> FrozenFeatures | None:
    """Return the features that the heads of the search read; None without a cache, or for a network without heads."""
    if cache is None:
        return None
    try:
        return frozen_body(prepared, backbone, cache)[1]
    except ValueError:
        return None


def recommended_strategies(advice: Mapping[str, Any]) -> dict[str, Config]:
    """Return the recommended strategies that compete, in order, with the parameters to begin with.

    An advice of an earlier version has an order only.
    """
    parameters = {
        item["strategy"]["name"]: {name: value for name, value in item["strategy"].items() if name != "name"}
        for item in (advice["recommended"] if "added" in advice else ())
    }
    return {name: parameters.get(name, {}) for name in advice.get("order", ())}


def summary_line(advice: Mapping[str, Any], strategies: Sequence[str] = ()) -> str:
    """Return an advice as one line; empty if there is none.

    Args:
        advice: as stored in plan.json.
        strategies: the strategies that compete, to be named with the flag that adds others.
    """
    return "; ".join(filter(None, [_describe_strategies(advice, strategies), _describe_balances(advice)]))


def _describe_balances(advice: Mapping[str, Any]) -> str:
    values = advice.get("balances")
    return f"classes are imbalanced: balance {', '.join(values)} compete" if values else ""


def _describe_strategies(advice: Mapping[str, Any], strategies: Sequence[str]) -> str:
    if "why_none" in advice:
        return f"none, so the default order: {advice['why_none']}"
    if "recommended" not in advice:
        return ""
    likeness = "similar to" if advice["likeness"] == "similar" else "different from"
    close = "" if advice["clear"] else ", a close call"
    first = recommended_strategies(advice)
    others = [name for name in _recommended_names(advice) if name not in first]
    order = f"{', '.join(map(explain_strategy, first))} first" if first else "the default order"
    added = f"; {', '.join(advice['added'])} added to the search" if advice.get("added") else ""
    flag = f"; --strategies {','.join((*strategies, *others))} adds {', '.join(others)}" if others else ""
    return f"the data set is {advice['size']} and {likeness} the pretraining data{close}: {order}{added}{flag}"


def _recommended_names(advice: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(item["strategy"]["name"] for item in advice["recommended"]))
