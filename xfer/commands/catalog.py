"""Catalog: list every table with its entries, their parameters and the ranges worth trying."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from xfer.choices import ALIASES, Value, canonical_name, closest_names_message, default_parameters
from xfer.data.layouts import SOURCES
from xfer.hyperparameters import OPTIMIZERS, search_range
from xfer.measure.robustness import NOISES
from xfer.models.families import FAMILIES, Family
from xfer.models.panel import PANEL, PanelNetwork
from xfer.objectives import OBJECTIVES, Objective
from xfer.recipe import CHOICE_TABLES

LINE_WIDTH = 110
EXTRA_TABLES: dict[str, Mapping[str, Any]] = {
    "source": SOURCES,
    "noise": NOISES,
    "objective": OBJECTIVES,
    "backbone": PANEL,
    "family": {str(name): family for name, family in FAMILIES.items()},
}
"""Tables that no recipe chooses from."""

LEGEND = "parameter=default (what a sweep tries)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("name", nargs="?", default="", help="a table (strategy, optimizer, ...) or an entry (lora)")


def run(args: argparse.Namespace) -> None:
    """Print all tables, one table, or the whole card of an entry.

    Raises:
        ValueError: no table and no entry has that name.
    """
    tables: dict[str, Mapping[str, Any]] = {**CHOICE_TABLES, **EXTRA_TABLES}
    listings = [_listing(kind, table) for kind, table in tables.items() if args.name in ("", kind)]
    names = {kind: canonical_name(kind, args.name) for kind in tables}
    cards = [_card(kind, names[kind], table[names[kind]]) for kind, table in tables.items() if names[kind] in table]
    if not listings and not cards:
        entries = (name for table in (*tables.values(), *ALIASES.values()) for name in table)
        known = dict.fromkeys([*tables, *entries])
        raise ValueError(
            f"{closest_names_message('table or entry', args.name, known)} `python -m xfer catalog` lists them all"
        )
    print("\n\n".join([*listings, *cards, LEGEND]))


def _listing(kind: str, table: Mapping[str, Any]) -> str:
    """A table as text: the signature of each entry with its ranges, and the first line of its card."""
    return "\n".join([kind, *(line for name, entry in table.items() for line in _entry_lines(kind, name, entry))])


def _entry_lines(kind: str, name: str, entry: Any) -> list[str]:
    defaults = default_parameters(entry) if kind in CHOICE_TABLES else {}
    details = "; ".join(_parameter(name, parameter, default) for parameter, default in defaults.items())
    rate = f"learning_rate {OPTIMIZERS[name].learning_rates}" if kind == "optimizer" else ""
    signature = "   ".join(part for part in (name, details, rate) if part)
    return [
        *textwrap.wrap(signature, LINE_WIDTH, initial_indent=2 * " ", subsequent_indent=6 * " "),
        *textwrap.wrap(_first_line(entry), LINE_WIDTH, initial_indent=6 * " ", subsequent_indent=6 * " "),
    ]


def _parameter(entry: str, name: str, default: Value) -> str:
    text = f"{default:g}" if isinstance(default, float) else str(default)
    searched = str(search_range(entry, name))
    return f"{name}={text}" + (f" ({searched})" if searched != text else "")


def _card(kind: str, name: str, entry: Any) -> str:
    rest = _card_text(entry).partition("\n\n")[2]
    return "\n\n".join(part for part in (_listing(kind, {name: entry}), textwrap.indent(rest, 6 * " ")) if part)


def _first_line(entry: Any) -> str:
    return _card_text(entry).partition("\n\n")[0].replace("\n", " ")


def _card_text(entry: Any) -> str:
    if isinstance(entry, Objective):
        better = "higher" if entry.higher_is_better else "lower"
        return f"{entry.label[0].upper()}{entry.label[1:]}: {better} is better."
    if isinstance(entry, Family):
        return _family_text(entry)
    return _panel_text(entry) if isinstance(entry, PanelNetwork) else inspect.cleandoc(entry.__doc__ or "")


def _family_text(family: Family) -> str:
    ranges = {
        **{f"{name} learning_rate": rates for name, rates in family.learning_rates.items()},
        **({"weight_decay of adamw, lamb and lion": family.weight_decay} if family.weight_decay else {}),
        **family.parameters,
        "drop_path": ", ".join(f"{rate:g}" for rate in family.drop_path),
    }
    lines = [
        f"Networks with {family.layers}.",
        f"A sweep tries {', '.join(family.optimizers)}. Ranges of its own: "
        + "; ".join(f"{name} {values}" for name, values in ranges.items())
        + f". Reason: {family.reason}. Source: {family.source}.",
    ]
    return "\n\n".join(textwrap.fill(line, LINE_WIDTH - 6) for line in lines)


def _panel_text(network: PanelNetwork) -> str:
    rated = f"{100 * network.top1:.1f}% on ImageNet, " if network.top1 else ""
    size = f"{rated}{network.parameters:.1f} million parameters, {network.gflops:.2f} GFLOPs at 224 px."
    limits = f" The weights are under the {network.license}." if network.license else ""
    reason = f"{network.reason[0].upper()}{network.reason[1:]}. Source: {network.source}."
    rest = textwrap.fill(f"{reason}{limits}", LINE_WIDTH - 6)
    return f"In the {network.size} panel of --backbone auto: {size}\n\n{rest}"
