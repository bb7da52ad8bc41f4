"""Choice: an entry of a table with the values of its parameters."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Choice:
    """One entry of a table, with all of its parameters.

    >>> str(Choice("freeze_then_unfreeze", (("freeze_epochs", 2),)))
    'freeze_then_unfreeze(freeze_epochs=2)'
    """

    name: str
    values: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.values)
        return f"{self.name}({values})" if values else self.name

    def as_dict(self) -> dict[str, Value]:
        """Returns plain data: the entry's name under `name`, and its parameters."""
        return {"name": self.name, **dict(self.values)}

    def build(self, table: Mapping[str, Callable[..., Any]], *arguments: Any) -> Any:
        """Calls the entry with its parameters, after the positional arguments that this kind of table takes."""
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
    """Builds a Choice with all parameters spelled out, so that later changes of the defaults do not affect it.

    Args:
        kind: what the table holds, for error messages: "strategy".
        table: the entries by name.
        name: the entry, or an alias of it.
        values: some of its parameters.

    Raises:
        ValueError: If there is no such entry or parameter; the message suggests the nearest known names.
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
    """Returns the hyperparameters of a table's entry with their defaults: its arguments that have one."""
    parameters = inspect.signature(entry).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.default is not inspect.Parameter.empty
    }


def unknown_name_message(kind: str, name: str, known: Iterable[str]) -> str:
    """Error message for an unknown name, with suggestions and all known names.

    >>> unknown_name_message("optimizer", "adan", ["sgd", "adam"])
    "unknown optimizer 'adan': did you mean adam? Known: sgd, adam"
    """
    names = list(known)
    return f"{closest_names_message(kind, name, names)} Known: {', '.join(names) or 'none'}"


def closest_names_message(kind: str, name: str, known: Iterable[str]) -> str:
    """The same without the known names, for where there are too many to list.

    >>> closest_names_message("optimizer", "adan", ["sgd", "adam"])
    "unknown optimizer 'adan': did you mean adam?"
    """
    by_key = {word.casefold(): word for word in known}
    suggestions = [by_key[key] for key in difflib.get_close_matches(name.casefold(), list(by_key), n=3)]
    return f"unknown {kind} {name!r}" + (f": did you mean {' or '.join(suggestions)}?" if suggestions else ".")
