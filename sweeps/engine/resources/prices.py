"""Prices: what machines cost per hour, from `--prices` or from the labels of a cluster file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PRICE_LABEL = "xfer/usd-per-hour"
"""Label of a cluster file's node type that holds the price of such a machine."""

LOCAL_NODE_TYPE = "this machine"
"""Node type of the local machine, if no cluster was joined."""

MAX_USD_PER_HOUR = 10_000.0
"""Highest accepted price in US dollars an hour: no machine costs as much, so a higher price is a mistake."""


@dataclass(frozen=True)
class Price:
    """The price of a machine and where it comes from."""

    usd_per_hour: float
    source: str
    """`--prices`, or `label` for the label in the cluster file."""


@dataclass(frozen=True)
class Machine:
    """A machine that is up and therefore costs money."""

    node_type: str
    """Name of its node type in the cluster file, or `LOCAL_NODE_TYPE` without a cluster."""
    label_price: float | None = None
    """Price on its label in US dollars an hour."""


@dataclass(frozen=True)
class Prices:
    """The prices that a user has given, in US dollars an hour: by node type, or one for every machine."""

    by_type: Mapping[str, float] = field(default_factory=dict)
    every: float | None = None

    def of(self, machine: Machine) -> Price | None:
        """Return the price of a machine, or None if it is unknown; a given price overrides the label.

        >>> Prices({"l4": 0.35}).of(Machine("l4", label_price=0.8)), Prices().of(Machine("head", label_price=0.2))
        (Price(usd_per_hour=0.35, source='--prices'), Price(usd_per_hour=0.2, source='label'))
        """
        given = self.by_type.get(machine.node_type, self.every)
        if given is not None:
            return Price(given, "--prices")
        return None if machine.label_price is None else Price(machine.label_price, "label")


UNKNOWN_PRICES = Prices()
"""Without --prices: the price in each node's label is used, if any."""


def parse_prices(text: str) -> Prices:
    """Parse the value of `--prices`.

    >>> parse_prices("l4=0.35, head=0.192").by_type, parse_prices("0.40").every, parse_prices("") == UNKNOWN_PRICES
    ({'l4': 0.35, 'head': 0.192}, 0.4, True)

    Args:
        text: one price for all machines, or NODE_TYPE=PRICE pairs separated by commas.

    Raises:
        ValueError: the text is malformed, or a price is not in [0, MAX_USD_PER_HOUR].
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and "=" not in parts[0]:
        return Prices(every=_parse_price(text, parts[0]))
    by_type: dict[str, float] = {}
    for part in parts:
        node_type, equals, price = (piece.strip() for piece in part.partition("="))
        if not equals or not node_type:
            raise ValueError(f"--prices {text}: write NODE_TYPE=PRICE[,NODE_TYPE=PRICE], or one PRICE for all machines")
        if node_type in by_type:
            raise ValueError(f"--prices {text}: {node_type} has two prices")
        by_type[node_type] = _parse_price(text, price)
    return Prices(by_type)


def parse_price_label(label: str | None) -> float | None:
    """Parse the price on a machine's label; return None if the label is absent or not a valid price.

    >>> parse_price_label("0.8048"), parse_price_label("cheap"), parse_price_label(None)
    (0.8048, None, None)
    """
    try:
        price = float(label or "")
    except ValueError:
        return None
    return price if 0 <= price <= MAX_USD_PER_HOUR else None  # rejects nan too


def check_cost_budget(prices: Prices, budget: float | None, joins: bool) -> None:
    """Check a cost budget against the prices, before anything starts.

    Args:
        prices: prices that the user has given.
        budget: cost budget in US dollars, or None.
        joins: whether the sweep joins a cluster, whose machines may have price labels.

    Raises:
        ValueError: the budget is not a positive amount, or no machine can have a price.
    """
    if budget is not None and not 0 < budget < math.inf:
        raise ValueError(f"--cost-budget {budget:g}: must be a positive amount in US dollars, as in --cost-budget 20")
    if joins:
        return
    if prices.by_type:
        raise ValueError(
            f"--prices names {', '.join(prices.by_type)}, node types of a cluster, but RAY_ADDRESS is not set: "
            f"write --prices 0.40 for the price of this machine per hour"
        )
    if budget is not None and prices.every is None:
        raise ValueError(
            f"--cost-budget {budget:g}: the price of this machine is unknown, so the cost cannot be computed: "
            f"add --prices 0.40, in US dollars an hour"
        )


def missing_prices_message(budget: float, node_types: Sequence[str]) -> str:
    """Return the error for a cost budget on a cluster whose node types have no prices."""
    pairs = ",".join(f"{node_type}=PRICE" for node_type in node_types)
    return (
        f"--cost-budget {budget:g}: the prices of this cluster's machines are unknown, so the cost cannot be computed. "
        f"Add --prices {pairs} in US dollars an hour, or "
        f'labels: {{{PRICE_LABEL}: "PRICE"}} to each node type of the cluster file'
    )


def _parse_price(text: str, price: str) -> float:
    usd_per_hour = parse_price_label(price)
    if usd_per_hour is None:
        raise ValueError(f"--prices {text}: {price!r} is not a price in US dollars an hour, as in --prices l4=0.35")
    return usd_per_hour
