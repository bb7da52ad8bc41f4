"""Catalog: every table with its entries, their parameters, the ranges worth trying, and a line on each."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from xfer.choices import Value, closest_names_message, default_parameters
from xfer.data.layouts import SOURCES
from xfer.measure.robustness import NOISES
from xfer.objectives import OBJECTIVES, Objective
from xfer.recipe import CHOICE_TABLES

LINE_WIDTH = 110
EXTRA_TABLES: dict[str, Mapping[str, Any]] = {"source": SOURCES, "noise": NOISES, "objective": OBJECTIVES}
"""Tables that no recipe chooses from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("name", nargs="?", default="", help="a table (strategy, optimizer, ...) or an entry (lora)")


def run(args: argparse.Namespace) -> None:
    """Print all tables, one of them, or the whole card of an entry.

    Raises:
        ValueError: neither a table nor an entry has that name.
    """
    tables: dict[str, Mapping[str, Any]] = {**CHOICE_TABLES, **EXTRA_TABLES}
    lists = [_listed(kind, table) for kind, table in tables.items() if args.name in ("", kind)]
    cards = [_card(kind, args.name, table[args.name]) for kind, table in tables.items() if args.name in table]
    if not lists and not cards:
        known = dict.fromkeys([*tables, *(name for table in tables.values() for name in table)])
        raise ValueError(
            f"{closest_names_message('table or entry', args.name, known)} `python -m xfer catalog` lists them all"
        )
    print("\n\n".join([*lists, *cards, _legend()]))


def _listed(kind: str, table: Mapping[str, Any]) -> str:
    """A table as text: for each entry its signature with ranges, and the first line of its card."""
    return "\n".join([kind, *(line for name, entry in table.items() for line in _entry(kind, name, entry))])


def _entry(kind: str, name: str, entry: Any) -> list[str]:
    own = default_parameters(entry) if kind in CHOICE_TABLES else {}
    details = "; ".join(_parameter(name, parameter, usual) for parameter, usual in own.items())
    rate = f"learning_rate {_rate(name)}" if kind == "optimizer" and _rate(name) else ""
    first = "   ".join(each for each in (name, details, rate) if each)
    return [
        *textwrap.wrap(first, LINE_WIDTH, initial_indent=2 * " ", subsequent_indent=6 * " "),
        *textwrap.wrap(_first_line(entry), LINE_WIDTH, initial_indent=6 * " ", subsequent_indent=6 * " "),
    ]


def _parameter(entry: str, name: str, usual: Value) -> str:
    said, found = f"{usual:g}" if isinstance(usual, float) else str(usual), _range(entry, name)
    return f"{name}={said}" + (f" ({found})" if found not in ("", said) else "")


def _card(kind: str, name: str, entry: Any) -> str:
    rest = _text(entry).partition("\n\n")[2]
    return "\n\n".join(each for each in (_listed(kind, {name: entry}), textwrap.indent(rest, 6 * " ")) if each)


def _first_line(entry: Any) -> str:
    return _text(entry).partition("\n\n")[0].replace("\n", " ")


def _text(entry: Any) -> str:
    if isinstance(entry, Objective):
        better = "higher" if entry.higher_is_better else "lower"
        return f"{entry.label[0].upper()}{entry.label[1:]}: {better} is better."
    return inspect.cleandoc(entry.__doc__ or "")


def _legend() -> str:
    ranges = "; the ranges worth trying come with sweeps" if _spaces() is None else " (what a sweep tries)"
    return f"parameter=default{ranges}"


def _range(entry: str, parameter: str) -> str:
    domains = getattr(_spaces(), "PARAMETER_RANGES", {})
    return str(domains.get(f"{entry}.{parameter}", domains.get(parameter, "")))


def _rate(optimizer: str) -> str:
    return str(getattr(_spaces(), "LEARNING_RATE_RANGES", {}).get(optimizer, ""))


def _spaces() -> Any:
    """The ranges, which belong to the search and so to `sweeps`: shown where that is installed, never needed."""
    if importlib.util.find_spec("sweeps") is None:
        return None
    return importlib.import_module("sweeps.engine.search_space.space")
