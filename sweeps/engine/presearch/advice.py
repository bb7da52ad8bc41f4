"""Chooses the strategies that a new sweep tries first, from measurements of its data before any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.engine.planning.prepared import Prepared, common_images_per_class
from xfer.advice.advisor import advise
from xfer.data.pack import Progress
from xfer.methods.descriptions import explain_strategy


def recommend_strategies(prepared: Prepared, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Return the advice of `xfer.advice.advisor` for a sweep's data and first backbone, as plain data for plan.json.

    Args:
        prepared: the plan with its data and weights.
        progress: called with the number of measured images and their total.

    Returns:
        The advice, with the competing ones of the recommended strategies as `order`. Empty if there is nothing to
        order: a single strategy, explicit arms, no pretrained weights, or advice switched off. Only `why_none`, the
        reason, if the data or the network cannot be measured.
    """
    plan, backbone, competing = prepared.plan, prepared.backbones[0], prepared.space.strategies()
    if not plan.advise or plan.arms or backbone.file is None or len(competing) < 2:
        return {}
    advice = measure_dataset(prepared, progress)
    if "why_none" in advice:
        return advice
    return {**advice, "order": [name for name in _recommended_names(advice) if name in competing]}


def measure_dataset(prepared: Prepared, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Run the advisor on a sweep's data, even if advice is switched off.

    Args:
        prepared: the plan with its data and weights.
        progress: called with the number of measured images and their total.

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
        ).as_dict()
    except ValueError as error:
        return {"why_none": str(error)}
    except Exception as error:  # any error in a network's code; a sweep can run without advice
        return {"why_none": f"{type(error).__name__}: {error}"}


def recommended_strategies(advice: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the recommended strategies that compete, in order."""
    return tuple(advice.get("order", ()))


def summary_line(advice: Mapping[str, Any]) -> str:
    """Return an advice as one line; empty if there is none."""
    if "why_none" in advice:
        return f"none, so the default order: {advice['why_none']}"
    if not advice:
        return ""
    likeness = "similar to" if advice["likeness"] == "similar" else "different from"
    close = "" if advice["clear"] else ", a close call"
    first = recommended_strategies(advice)
    others = [name for name in _recommended_names(advice) if name not in first]
    order = f"{', '.join(map(explain_strategy, first))} first" if first else "the default order"
    not_competing = f" (also recommended, but not competing: {', '.join(others)})" if others else ""
    return f"the data set is {advice['size']} and {likeness} the pretraining data{close}: {order}{not_competing}"


def _recommended_names(advice: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(item["strategy"]["name"] for item in advice["recommended"]))
