"""Cost of a sweep's machines, from the records that each start of the sweep wrote."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.reporting.formatting import escape_control_characters, format_dollars, format_duration, join_words

COST_COVERAGE_NOTE = (
    "The cost covers every machine that was up while the sweep ran, idle ones included, at the price given for its "
    "node type. Machines that were starting up or shutting down, disks and network traffic are not included."
)


@dataclass(frozen=True)
class NodeTypeCost:
    """Time and cost of all machines of one node type at one price."""

    node_type: str
    usd_per_hour: float | None
    """Price of one machine; None if unknown."""
    seconds: float
    """Total time of these machines."""

    @property
    def usd(self) -> float:
        """Total cost in US dollars; 0 if the price is unknown."""
        return self.seconds / 3600 * (self.usd_per_hour or 0.0)


def cost_by_node_type(starts: Iterable[Mapping[str, Any]]) -> list[NodeTypeCost]:
    """Sum the cost of all starts of a sweep by node type and price.

    Args:
        starts: one mapping per start, as written by `sweeps.engine.resources.cost.CostTracker`.

    Returns:
        The most expensive node type first.
    """
    seconds: dict[tuple[str, float | None], float] = defaultdict(float)
    for start in starts:
        for machines in start["machines"]:
            seconds[machines["node_type"], machines["usd_per_hour"]] += machines["seconds"]
    costs = [NodeTypeCost(node_type, price, total) for (node_type, price), total in seconds.items()]
    return sorted(costs, key=lambda cost: (-cost.usd, cost.node_type))


def total_usd(starts: Iterable[Mapping[str, Any]]) -> float | None:
    """Total cost of all starts in US dollars; None if no price is known."""
    known = [cost.usd for cost in cost_by_node_type(starts) if cost.usd_per_hour is not None]
    return sum(known) if known else None


def describe_cost(starts: Iterable[Mapping[str, Any]]) -> str | None:
    """Describe the total cost and the machines behind it; None if no price is known."""
    priced, unpriced, total = [], [], 0.0
    for cost in cost_by_node_type(starts):
        usage = f"{format_duration(cost.seconds)} of {escape_control_characters(cost.node_type)}"
        if cost.usd_per_hour is None:
            unpriced.append(usage)
        else:
            priced.append(f"{usage} at {format_dollars(cost.usd_per_hour)}")
            total += cost.usd
    excluded = f"; not counted, price unknown: {join_words(unpriced)}" if unpriced else ""
    return f"${total:,.2f} for {join_words(priced)} an hour{excluded}" if priced else None
