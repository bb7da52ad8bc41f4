"""Budget: the time and the money that a sweep may spend."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sweeps.engine.resources.cost import CostTracker
from sweeps.engine.resources.prices import Machine, missing_prices_message
from sweeps.reporting.formatting import format_cost_so_far


class Budget:
    """Time budget of this start and cost budget of the whole sweep; the time counts from construction.

    Args:
        cost_tracker: knows what the machines of all starts have cost.
        seconds: time budget; None for no limit.
        usd: cost budget in US dollars, over all starts of the sweep; None for no limit.
    """

    def __init__(self, cost_tracker: CostTracker, seconds: float | None = None, usd: float | None = None) -> None:
        self._cost_tracker = cost_tracker
        self._usd = usd
        self._seconds = seconds
        self._started = time.monotonic()
        self._time_is_short = time_limit(seconds)
        self._money_is_short = cost_tracker.budget_check(usd)
        self.is_limited = seconds is not None or usd is not None
        """Whether there is any limit."""

    def seconds_left(self) -> float | None:
        """Return the seconds until the time, or the money on the machines that are up now, is spent; None if unlimited.

        Never negative.
        """
        limits = [] if self._seconds is None else [self._seconds - (time.monotonic() - self._started)]
        if self._usd is not None and self._cost_tracker.usd_per_hour > 0:
            left = self._usd - (self._cost_tracker.spent() or 0.0)
            limits.append(left / self._cost_tracker.usd_per_hour * 3600)
        return max(0.0, min(limits)) if limits else None

    def exceeded(self, reserve: float = 0.0) -> bool:
        """Return whether time or money will not last for another `reserve` seconds."""
        return self._time_is_short(reserve) or self._money_is_short(reserve)

    def cost_exceeded(self, reserve: float = 0.0) -> bool:
        """Return whether the money will not last for another `reserve` seconds on the machines that are up now."""
        return self._money_is_short(reserve)

    def cost_message(self, stage_ends: str, reserve: float = 0.0) -> str:
        """Return the line that says why a stage ends early, if the cost budget is the reason.

        Args:
            stage_ends: subject and verb, such as "The search ends".
            reserve: seconds kept back for the finals.

        Returns:
            The line; empty if the cost budget lasts.
        """
        if not self._money_is_short(reserve):
            return ""
        reserved_usd = self._cost_tracker.usd_per_hour * reserve / 3600
        finals = f", and the finals will cost about ${reserved_usd:,.2f}" if reserved_usd else ""
        spent = format_cost_so_far(self._cost_tracker.spent(), self._usd)
        return f"cost budget: {spent} spent{finals}. {stage_ends} here; a larger --cost-budget resumes from here"

    def use_cluster(self, machines: Callable[[], Sequence[Machine]]) -> None:
        """Charge for the machines of a cluster from now on.

        Args:
            machines: returns the machines that are up.

        Raises:
            ValueError: there is a cost budget, but none of the machines has a price.
        """
        self._cost_tracker.set_machine_source(machines)
        if self._usd is not None and (node_types := self._cost_tracker.unpriced):
            raise ValueError(missing_prices_message(self._usd, node_types))


def time_limit(seconds: float | None) -> Callable[[float], bool]:
    """Start a stopwatch.

    Args:
        seconds: the limit; None for no limit.

    Returns:
        A function that takes a reserve in seconds and returns whether less than that remains.
    """
    start = time.monotonic()
    return lambda reserve: seconds is not None and time.monotonic() - start + reserve > seconds
