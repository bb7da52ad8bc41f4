"""Advice: which strategies a new sweep begins with, found out from the data before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweeps.engine.planning.prepared import Prepared, common_images_per_class
from xfer.advice.advisor import advise
from xfer.data.pack import Progress


def recommend_strategies(prepared: Prepared, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """What `xfer.advice.advisor` says about a sweep's data and first backbone, as plain data for plan.json.

    Beside that, `order` names those of the advised strategies that compete. Empty where there is nothing to order: a
    single strategy, explicit arms, nothing pretrained, or advice unwanted. Where the data or the network cannot be
    measured, `why_none` says why.
    """
    plan, backbone, competing = prepared.plan, prepared.backbones[0], prepared.space.strategies()
    if not plan.advise or plan.arms or backbone.file is None or len(competing) < 2:
        return {}
    found = measure_dataset(prepared, progress)
    if "why_none" in found:
        return found
    return {**found, "order": [name for name in _named(found) if name in competing]}


def measure_dataset(prepared: Prepared, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """The advisor's measurements, whether or not advice is wanted, or `why_none` if nothing can be measured."""
    plan, backbone = prepared.plan, prepared.backbones[0]
    if backbone.file is None:
        return {"why_none": "nothing pretrained competes, so the data cannot be measured"}
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
    except Exception as error:  # whatever a network's code happens to raise: without advice a sweep is still a sweep
        return {"why_none": f"{type(error).__name__}: {error}"}


def recommended_strategies(advice: Mapping[str, Any]) -> tuple[str, ...]:
    """The advised strategies that compete, in order."""
    return tuple(advice.get("order", ()))


def summary_line(advice: Mapping[str, Any]) -> str:
    """An advice in a line; empty for none."""
    if "why_none" in advice:
        return f"none, so the usual order: {advice['why_none']}"
    if not advice:
        return ""
    unlike = "like" if advice["likeness"] == "similar" else "unlike"
    close = "" if advice["clear"] else ", a close call"
    first, out = (
        recommended_strategies(advice),
        [name for name in _named(advice) if name not in recommended_strategies(advice)],
    )
    order = f"{', '.join(first)} {'comes' if len(first) == 1 else 'come'} first" if first else "the usual order"
    left = f" (advised too, but not competing: {', '.join(out)})" if out else ""
    return f"the data set is {advice['size']} and {unlike} what the network has learned{close}: {order}{left}"


def _named(advice: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(each["strategy"]["name"] for each in advice["recommended"]))
