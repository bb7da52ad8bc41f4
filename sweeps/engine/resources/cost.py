"""Tracks what the machines of a sweep cost.

A machine costs money as long as it is up, whether it works or not. The machines are therefore polled every few seconds,
and each poll's machines are charged until the next poll. The cost of one start of the sweep is stored about once a
minute; the cost of the sweep is the sum over its starts.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from sweeps.engine.resources.prices import UNKNOWN_PRICES, Machine, Price, Prices
from sweeps.engine.storage.store import Store
from sweeps.reporting import cost
from sweeps.reporting.formatting import format_dollars

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""Seconds between two polls: the error of the time of a machine that starts or stops."""
WRITE_SECONDS = 60.0
"""Seconds between two writes: the most that is lost if the driver is killed."""


class CostLedger:
    """Machine-seconds by node type and price, summed from one poll of the machines to the next."""

    def __init__(self, prices: Prices = UNKNOWN_PRICES) -> None:
        self._prices = prices
        self._seconds: dict[tuple[str, Price | None], float] = {}
        self._running: Counter[tuple[str, Price | None]] = Counter()
        self._time = 0.0

    def update(self, machines: Sequence[Machine], at: float) -> None:
        """Charge the machines of the previous poll until now, and note the machines of this one.

        Args:
            machines: machines that are up now.
            at: time of the poll in seconds.
        """
        self.advance_to(at)
        self._running = Counter((machine.node_type, self._prices.of(machine)) for machine in machines)
        for entry in self._running:
            self._seconds.setdefault(entry, 0.0)

    def advance_to(self, at: float) -> None:
        """Charge the machines of the last poll until a time in seconds, assuming that they are still up."""
        for entry, count in self._running.items():
            self._seconds[entry] += count * (at - self._time)
        self._time = at

    @property
    def usd_per_hour(self) -> float:
        """Price of all machines of the last poll whose price is known."""
        return sum(count * price.usd_per_hour for (_, price), count in self._running.items() if price is not None)

    @property
    def prices(self) -> dict[str, Price]:
        """The latest price of each node type that was up, if known."""
        return {node_type: price for node_type, price in self._seconds if price is not None}

    @property
    def unknown(self) -> list[str]:
        """The node types that were up and have no price."""
        return sorted(node_type for node_type, price in self._seconds if price is None)

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the ledger as plain data, in the format of `sweeps.reporting.cost`."""
        return [
            {
                "node_type": node_type,
                "usd_per_hour": price.usd_per_hour if price else None,
                "from": price.source if price else None,
                "seconds": round(seconds, 3),
            }
            for (node_type, price), seconds in self._seconds.items()
        ]


class CostTracker:
    """Polls the machines in the background and stores their cost: `with CostTracker(...) as tracker: ...`.

    If no price is known, it writes nothing and no cost is reported.

    Args:
        store: the sweep's store, which has the cost of earlier starts.
        prices: prices that the user has given.
        machines: returns the machines that are up. Defaults to none. If it raises, the machines of the last poll are
            assumed to be still up.
        say: called once per node type with a line about its price, or about its missing price if others have one.
        poll_seconds: seconds between two polls.
        write_seconds: seconds between two writes to the store.
        clock: returns a time in seconds.
    """

    def __init__(
        self,
        store: Store,
        prices: Prices = UNKNOWN_PRICES,
        machines: Callable[[], Sequence[Machine]] = tuple,
        say: Callable[[str], None] = log.warning,
        poll_seconds: float = POLL_SECONDS,
        write_seconds: float = WRITE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._prices = prices
        self._machines = machines
        self._say = say
        self._poll_seconds = poll_seconds
        self._write_seconds = write_seconds
        self._clock = clock
        self._ledger = CostLedger(prices)
        self._usd_before = cost.total_usd(store.spending())
        self._start: int | None = None
        self._written_at = -math.inf
        self._recorded_prices: dict[str, Price] = {}
        self._reported: set[str] = set()
        self._logged_errors: set[str] = set()
        self._ledger_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cost", daemon=True)

    def __enter__(self) -> Self:
        self.poll()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(self._poll_seconds)  # do not wait for a cluster that does not answer
        with self._log_errors():
            self._write()

    def set_machine_source(self, machines: Callable[[], Sequence[Machine]]) -> None:
        """Replace the function that returns the machines that are up, and poll it."""
        self._machines = machines
        self.poll()

    def poll(self) -> None:
        """Poll the machines, charge for those of the last poll, and write the cost if it is due."""
        machines = None
        with self._log_errors():
            machines = self._machines()
        with self._ledger_lock:
            if machines is None:
                self._ledger.advance_to(self._clock())
            else:
                self._ledger.update(machines, self._clock())
            prices, unknown = self._ledger.prices, self._ledger.unknown
            due = self._clock() - self._written_at >= self._write_seconds
        with self._log_errors():
            with self._write_lock:
                self._report_prices(prices, unknown)
            if due:
                self._write()

    def spent(self) -> float | None:
        """Return the cost of all starts until now in US dollars, or None if no price is known."""
        with self._ledger_lock:
            self._ledger.advance_to(self._clock())
            now = cost.total_usd([{"machines": self._ledger.as_dicts()}])
        return None if self._usd_before is None and now is None else (self._usd_before or 0.0) + (now or 0.0)

    @property
    def usd_per_hour(self) -> float:
        """Price of all machines that are up and whose price is known."""
        with self._ledger_lock:
            return self._ledger.usd_per_hour

    @property
    def unpriced(self) -> list[str]:
        """The node types that were up, if none of them has a price; empty if at least one has."""
        with self._ledger_lock:
            return [] if self._ledger.prices else self._ledger.unknown

    def budget_check(self, budget: float | None) -> Callable[[float], bool]:
        """Return a function that says whether a cost budget is exceeded after some more seconds on today's machines.

        Args:
            budget: cost budget in US dollars over all starts; None for no limit.

        Returns:
            A function of a reserve in seconds, like that of `time_limit`.
        """

        def short(reserve: float) -> bool:
            if budget is None:
                return False
            return (self.spent() or 0.0) + self.usd_per_hour * reserve / 3600 > budget

        return short

    def _write(self) -> None:
        with self._write_lock:
            with self._ledger_lock:
                self._ledger.advance_to(self._clock())
                prices, machines, now = self._ledger.prices, self._ledger.as_dicts(), self._clock()
            if prices:
                self._start = self._store.put_spending(self._start, machines)
                self._written_at = now

    def _report_prices(self, prices: Mapping[str, Price], unknown: Sequence[str]) -> None:
        """Record new prices in the plan, and print each price and each missing price once."""
        given = {node_type: Price(usd, "--prices") for node_type, usd in self._prices.by_type.items()}
        known = {**given, **prices}
        if known != self._recorded_prices:
            self._store.record_prices({node_type: _price_to_dict(price) for node_type, price in known.items()})
            self._recorded_prices = known
        for node_type, price in prices.items():
            if node_type not in self._reported:
                self._reported.add(node_type)
                self._say(f"cost: {node_type} at {format_dollars(price.usd_per_hour)} an hour, by {price.source}")
        for node_type in unknown if prices else ():
            if node_type not in self._reported:
                self._reported.add(node_type)
                self._say(f"cost: {node_type} has no price and is not counted: add --prices {node_type}=PRICE")

    def _run(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self.poll()

    @contextmanager
    def _log_errors(self) -> Iterator[None]:
        """Log errors, such as a full disk or an unreachable cluster, instead of interrupting the sweep."""
        try:
            yield
        except Exception as error:
            kind = type(error).__name__
            if kind not in self._logged_errors:
                log.warning("cost of machines: %s: %s. The next poll retries.", kind, error)
            self._logged_errors.add(kind)


def _price_to_dict(price: Price) -> dict[str, Any]:
    return {"usd_per_hour": price.usd_per_hour, "from": price.source}
