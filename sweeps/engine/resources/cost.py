"""Cost: what the machines of a sweep cost an hour, what they have cost so far, and whether a budget holds out.

A machine is paid for as long as it is there, whether it works or not. So every few seconds the machines are looked at,
and those that were there at one look are charged for until the next. What a start of the sweep has spent is written
down about once a minute, and what the sweep has spent is the sum over its starts.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from sweeps.engine.storage.store import Store
from sweeps.reporting import cost
from sweeps.reporting.formatting import format_dollars

log = logging.getLogger(__name__)

PRICE_LABEL = "xfer/usd-per-hour"
"""The label under which a node type of a cluster file says what such a machine costs."""

LOCAL_NODE_TYPE = "this machine"
"""The node type of the machine that we run on, where no cluster was joined."""

MAX_USD_PER_HOUR = 10_000.0
"""US dollars an hour: no machine costs as much, so a higher price is a slip."""

POLL_SECONDS = 5.0
"""Seconds: by so much the time of a machine that comes or goes may be off."""
WRITE_SECONDS = 60.0
"""Seconds: so much is forgotten at most where the driver is killed."""


@dataclass(frozen=True)
class Price:
    """What a machine costs, and who says so."""

    usd_per_hour: float
    source: str
    """`--prices`, or `label`: that of the cluster file."""


@dataclass(frozen=True)
class Machine:
    """A machine that is there, and so paid for."""

    node_type: str
    """Its name in the cluster file, `LOCAL_NODE_TYPE` outside of a cluster."""
    labelled: float | None = None
    """What its label says that it costs, in US dollars an hour."""


@dataclass(frozen=True)
class Prices:
    """What a person says that machines cost, in US dollars an hour: by node type, or every machine the same."""

    by_type: Mapping[str, float] = field(default_factory=dict)
    every: float | None = None

    def of(self, machine: Machine) -> Price | None:
        """What a machine costs; what was said counts before its label. None where nobody knows.

        >>> Prices({"l4": 0.35}).of(Machine("l4", labelled=0.8)), Prices().of(Machine("head", labelled=0.2))
        (Price(usd_per_hour=0.35, source='--prices'), Price(usd_per_hour=0.2, source='label'))
        """
        said = self.by_type.get(machine.node_type, self.every)
        if said is not None:
            return Price(said, "--prices")
        return None if machine.labelled is None else Price(machine.labelled, "label")


UNKNOWN_PRICES = Prices()
"""Nothing was said: what a machine costs stands on its label or nowhere."""


def parse_prices(text: str) -> Prices:
    """What `--prices` says.

    >>> parse_prices("l4=0.35, head=0.192").by_type, parse_prices("0.40").every, parse_prices("") == UNKNOWN_PRICES
    ({'l4': 0.35, 'head': 0.192}, 0.4, True)

    Raises:
        ValueError: it cannot be read.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and "=" not in parts[0]:
        return Prices(every=_price(text, parts[0]))
    by_type: dict[str, float] = {}
    for part in parts:
        node_type, equals, price = (piece.strip() for piece in part.partition("="))
        if not equals or not node_type:
            raise ValueError(f"--prices {text}: NODE_TYPE=PRICE[,NODE_TYPE=PRICE] is wanted, or one PRICE for all")
        if node_type in by_type:
            raise ValueError(f"--prices {text}: {node_type} is given twice")
        by_type[node_type] = _price(text, price)
    return Prices(by_type)


def labelled(label: str | None) -> float | None:
    """The price on a machine's label; None where there is none, or none that can be read.

    >>> labelled("0.8048"), labelled("cheap"), labelled(None)
    (0.8048, None, None)
    """
    try:
        price = float(label or "")
    except ValueError:
        return None
    return price if 0 <= price <= MAX_USD_PER_HOUR else None  # which nan is not


def check_cost_budget(prices: Prices, budget: float | None, joins: bool) -> None:
    """Refuse what can be known to be wrong before anything is begun.

    Args:
        prices: what was said.
        budget: the cost budget in US dollars.
        joins: whether a cluster is joined, whose machines may have labels.

    Raises:
        ValueError: the budget is no amount; or no machine here will have a price.
    """
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f"--cost-budget {budget:g}: an amount of money is wanted, as in --cost-budget 20")
    if joins:
        return
    if prices.by_type:
        raise ValueError(
            f"--prices names {', '.join(prices.by_type)}, node types of a cluster, but RAY_ADDRESS names no cluster: "
            f"--prices 0.40 says what this machine costs an hour"
        )
    if budget is not None and prices.every is None:
        raise ValueError(
            f"--cost-budget {budget:g}: nobody has said what this machine costs, so there is no telling when that is "
            f"spent: --prices 0.40 says it, in US dollars an hour"
        )


def missing_prices_message(budget: float, node_types: Sequence[str]) -> str:
    """Why a cluster without prices has no use for a budget, and what to do about it."""
    some = ",".join(f"{node_type}=PRICE" for node_type in node_types)
    return (
        f"--cost-budget {budget:g}: nobody has said what the machines of this cluster cost, so there is no telling "
        f"when that is spent. Give --prices {some} in US dollars an hour, or write "
        f'labels: {{{PRICE_LABEL}: "PRICE"}} under each node type of the cluster file'
    )


class CostLedger:
    """Machine-seconds by node type and price, added up from one look at the machines to the next."""

    def __init__(self, prices: Prices = UNKNOWN_PRICES) -> None:
        self._prices = prices
        self._seconds: dict[tuple[str, Price | None], float] = {}
        self._there: Counter[tuple[str, Price | None]] = Counter()
        self._at = 0.0

    def look(self, machines: Sequence[Machine], at: float) -> None:
        """These machines are there at this time, in seconds; those of the look before were there until now."""
        self.advance_to(at)
        self._there = Counter((machine.node_type, self._prices.of(machine)) for machine in machines)
        for which in self._there:
            self._seconds.setdefault(which, 0.0)

    def advance_to(self, at: float) -> None:
        """Nothing is known but that it is later: those that were there at the last look still are."""
        for which, count in self._there.items():
            self._seconds[which] += count * (at - self._at)
        self._at = at

    @property
    def usd_per_hour(self) -> float:
        """What the machines of the last look cost, as far as that is known."""
        return sum(count * price.usd_per_hour for (_, price), count in self._there.items() if price is not None)

    @property
    def prices(self) -> dict[str, Price]:
        """The newest price of each node type that was seen, where one is known."""
        return {node_type: price for node_type, price in self._seconds if price is not None}

    @property
    def unknown(self) -> list[str]:
        """The node types that were seen, and of which nobody has said what they cost."""
        return sorted(node_type for node_type, price in self._seconds if price is None)

    def described(self) -> list[dict[str, Any]]:
        """As plain data, for `sweeps.reporting.cost`."""
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
    """Looks at the machines in the background, and writes down what they cost: `with Meter(...) as meter: ...`.

    Args:
        store: the sweep's, which knows what earlier starts have spent.
        prices: what a person says that machines cost.
        machines: says which are there, nobody unless given. Whatever it raises, those of the look before are taken to
            be there still.
        say: told once of each node type what it costs, or that nobody knows where another's price is known.
        poll_seconds: seconds between two looks.
        write_seconds: seconds between two notes.
        clock: seconds since some moment.

    Where no price is known nothing is written, and nothing costs anything.
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
        self._looks_every = poll_seconds
        self._written_every = write_seconds
        self._clock = clock
        self._spending = CostLedger(prices)
        self._before = cost.total_usd(store.spending())
        self._start: int | None = None
        self._written = -math.inf
        self._noted: dict[str, Price] = {}
        self._told: set[str] = set()
        self._troubles: set[str] = set()
        self._counting = threading.Lock()
        self._writing = threading.Lock()
        self._done = threading.Event()
        self._looking = threading.Thread(target=self._work, name="cost", daemon=True)

    def __enter__(self) -> Self:
        self.look()
        self._looking.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._looking.join(self._looks_every)  # a cluster that does not answer any more is not waited for
        with self._going_on():
            self._write()

    def set_machine_source(self, machines: Callable[[], Sequence[Machine]]) -> None:
        """From now on these are the machines."""
        self._machines = machines
        self.look()

    def look(self) -> None:
        """See which machines are there, charge for those that were, and write it down if that is due."""
        machines = None
        with self._going_on():
            machines = self._machines()
        with self._counting:
            if machines is None:
                self._spending.advance_to(self._clock())
            else:
                self._spending.look(machines, self._clock())
            prices, unknown = self._spending.prices, self._spending.unknown
            due = self._clock() - self._written >= self._written_every
        with self._going_on():
            with self._writing:
                self._note(prices, unknown)
            if due:
                self._write()

    def spent(self) -> float | None:
        """What all starts together have spent up to now, in US dollars; None where no price is known."""
        with self._counting:
            self._spending.advance_to(self._clock())
            now = cost.total_usd([{"machines": self._spending.described()}])
        return None if self._before is None and now is None else (self._before or 0.0) + (now or 0.0)

    @property
    def usd_per_hour(self) -> float:
        """What the machines that are there cost, as far as that is known."""
        with self._counting:
            return self._spending.usd_per_hour

    @property
    def unpriced(self) -> list[str]:
        """The node types that were seen where none of them has a price; none where one has."""
        with self._counting:
            return [] if self._spending.prices else self._spending.unknown

    def budget_check(self, budget: float | None) -> Callable[[float], bool]:
        """Like `budget.time_limit`: would so many seconds more, on the machines that are there, cost more than is left?"""

        def short(reserve: float) -> bool:
            if budget is None:
                return False
            return (self.spent() or 0.0) + self.usd_per_hour * reserve / 3600 > budget

        return short

    def _write(self) -> None:
        with self._writing:
            with self._counting:
                self._spending.advance_to(self._clock())
                known, machines, at = self._spending.prices, self._spending.described(), self._clock()
            if known:
                self._start = self._store.put_spending(self._start, machines)
                self._written = at

    def _note(self, prices: Mapping[str, Price], unknown: Sequence[str]) -> None:
        """Let the plan know what machines cost, and the person of which that is not known."""
        given = {node_type: Price(usd, "--prices") for node_type, usd in self._prices.by_type.items()}
        known = {**given, **prices}
        if known != self._noted:
            self._store.record_prices({node_type: _plain(price) for node_type, price in known.items()})
            self._noted = known
        for node_type, price in prices.items():
            if node_type not in self._told:
                self._told.add(node_type)
                self._say(f"cost: {node_type} at {format_dollars(price.usd_per_hour)} an hour, by {price.source}")
        for node_type in unknown if prices else ():
            if node_type not in self._told:
                self._told.add(node_type)
                self._say(f"cost: no price is known for {node_type}, which is not counted: --prices {node_type}=PRICE")

    def _work(self) -> None:
        while not self._done.wait(self._looks_every):
            self.look()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Whatever goes wrong, a full disk or a cluster that does not answer, the sweep goes on."""
        try:
            yield
        except Exception as error:
            kind = type(error).__name__
            if kind not in self._troubles:
                log.warning("what machines cost: %s: %s. This is tried again.", kind, error)
            self._troubles.add(kind)


def _plain(price: Price) -> dict[str, Any]:
    return {"usd_per_hour": price.usd_per_hour, "from": price.source}


def _price(text: str, price: str) -> float:
    found = labelled(price)
    if found is None:
        raise ValueError(f"--prices {text}: {price!r} is no price in US dollars an hour, as in --prices l4=0.35")
    return found
