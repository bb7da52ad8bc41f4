"""Spent: what the machines of a sweep cost, from what its starts wrote down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.reporting.formatting import escape_control_characters, format_dollars, format_duration, join_words

COST_COVERAGE_NOTE = (
    "What it cost counts every machine that was there while the sweep ran, idle ones too, at the price that was given "
    "for its node type; the times of several are added up. Machines that were starting or waiting to be given back, "
    "disks and traffic are not in it."
)


@dataclass(frozen=True)
class NodeTypeCost:
    """What machines of one node type, at one price, came to."""

    node_type: str
    usd_per_hour: float | None
    """None where nobody has said what they cost."""
    seconds: float
    """Of all these machines, added up."""

    @property
    def usd(self) -> float:
        """What they cost, as far as that is known."""
        return self.seconds / 3600 * (self.usd_per_hour or 0.0)


def cost_by_node_type(starts: Iterable[Mapping[str, Any]]) -> list[NodeTypeCost]:
    """What all starts of a sweep came to, the dearest first.

    Args:
        starts: as `sweeps.engine.resources.cost.CostTracker` writes them.
    """
    seconds: dict[tuple[str, float | None], float] = defaultdict(float)
    for start in starts:
        for machines in start["machines"]:
            seconds[machines["node_type"], machines["usd_per_hour"]] += machines["seconds"]
    found = [NodeTypeCost(*which, added_up) for which, added_up in seconds.items()]
    return sorted(found, key=lambda each: (-each.usd, each.node_type))


def total_usd(starts: Iterable[Mapping[str, Any]]) -> float | None:
    """What they cost together in US dollars; None where no price is known."""
    known = [each.usd for each in cost_by_node_type(starts) if each.usd_per_hour is not None]
    return sum(known) if known else None


def describe_cost(starts: Iterable[Mapping[str, Any]]) -> str | None:
    """What it cost and on which machines; None where no price is known."""
    priced, unknown, together = [], [], 0.0
    for each in cost_by_node_type(starts):
        said = f"{format_duration(each.seconds)} of {escape_control_characters(each.node_type)}"
        if each.usd_per_hour is None:
            unknown.append(said)
        else:
            priced.append(f"{said} at {format_dollars(each.usd_per_hour)}")
            together += each.usd
    missing = f"; not counted, for want of a price: {join_words(unknown)}" if unknown else ""
    return f"${together:,.2f} for {join_words(priced)} an hour{missing}" if priced else None
