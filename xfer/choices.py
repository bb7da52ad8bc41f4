"""Choice: an entry of a table and the values of its parameters, as a person writes it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Choice:
    """One entry of a table, with every parameter of it.

    >>> str(Choice("freeze_then_unfreeze", (("freeze_epochs", 2),)))
    'freeze_then_unfreeze(freeze_epochs=2)'
    """

    name: str
    values: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.values)
        return f"{self.name}({values})" if values else self.name

    def as_dict(self) -> dict[str, Value]:
        """Plain data: the name under `name`, the parameters beside it."""
        return {"name": self.name, **dict(self.values)}

    def build(self, table: Mapping[str, Callable[..., Any]], *arguments: Any) -> Any:
        """What the entry makes of its parameters, after the positional arguments that the table's kind takes."""
        return table[self.name](*arguments, **dict(self.values))


ALIASES: dict[str, dict[str, str]] = {"strategy": {"full_finetune": "naive"}}
"""Other names of entries, by kind of choice. Recipes and reports hold the entry's own name."""


def canonical_name(kind: str, name: str) -> str:
    """Return the entry's own name for an alias, and any other name as it is.

    >>> canonical_name("strategy", "full_finetune"), canonical_name("strategy", "clip")
    ('naive', 'clip')
    """
    return ALIASES.get(kind, {}).get(name, name)


def choose(kind: str, table: Mapping[str, Callable[..., Any]], name: str, **values: Value) -> Choice:
    """A Choice with all parameters spelled out, defaults included: what was not said must not change with the code.

    Args:
        kind: what the table holds, for messages: "strategy".
        table: the entries by name.
        name: the entry, or an alias of it.
        values: some of its parameters.

    Raises:
        ValueError: no such entry, or it has no such parameter. The nearest known names are offered.
    """
    name = canonical_name(kind, name)
    if name not in table:
        raise ValueError(unknown_name_message(kind, name, [*table, *ALIASES.get(kind, {})]))
    known = default_parameters(table[name])
    for parameter in values:
        if parameter not in known:
            raise ValueError(unknown_name_message(f"parameter of {kind} {name}", parameter, known))
    return Choice(name, tuple((known | values).items()))


def default_parameters(entry: Callable[..., Any]) -> dict[str, Value]:
    """The hyperparameters of a table's entry with their defaults: those of its arguments that have one."""
    signature = inspect.signature(entry).parameters.values()
    return {each.name: each.default for each in signature if each.default is not inspect.Parameter.empty}


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """What to tell somebody who named something that does not exist.

    >>> unknown_name_message("optimizer", "adan", ["sgd", "adam"])
    "unknown optimizer 'adan': did you mean adam? Known: sgd, adam"
    """
    names = list(known)
    return f"{closest_names_message(kind, name, names)} Known: {', '.join(names) or 'none'}"


def closest_names_message(kind: str, name: str, known: Iterable[str]) -> str:
    """The same where what is known is too much to list.

    >>> closest_names_message("optimizer", "adan", ["sgd", "adam"])
    "unknown optimizer 'adan': did you mean adam?"
    """
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"unknown {kind} {name!r}" + (f": did you mean {' or '.join(near)}?" if near else ".")
