"""Flag types: how values are written on the command line, and help generated from the table of hyperparameters."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from xfer.choices import ALIASES, Value
from xfer.data.part_names import parse_parts
from xfer.hyperparameters import CHOICES, NUMBERS, STRATEGIES
from xfer.methods.descriptions import strategy_descriptions
from xfer.models.panel import AUTO
from xfer.storage.object_store import as_path

HELP_WIDTH = 57
"""Width of generated help texts in columns, so that a terminal of 80 columns does not wrap them again."""


class FlagError(Exception):
    """A flag's value cannot be parsed. Not a ValueError: tyro would print that in a format of its own."""


def parse_names(text: str) -> tuple[str, ...]:
    """Split names separated by commas.

    >>> parse_names("naive, clip,")
    ('naive', 'clip')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_weights(text: str) -> dict[str, str]:
    """Parse `--weights`: FILE, DIR or NAME=FILE[,NAME=FILE]. A path without a name is stored under ''.

    >>> parse_weights("a.safetensors"), parse_weights("resnet18=a.pt, resnet50=b.pt")
    ({'': 'a.safetensors'}, {'resnet18': 'a.pt', 'resnet50': 'b.pt'})

    Raises:
        ValueError: the text has another form.
    """
    parts = parse_names(text)
    if len(parts) == 1 and "=" not in parts[0]:
        return {"": parts[0]}
    return _parse_pairs("--weights", text)


def assign_weights(weights: Mapping[str, str], backbones: tuple[str, ...]) -> dict[str, str]:
    """Assign weights without a name to the only backbone, to `auto`, or, if they are a folder, to every backbone.

    Raises:
        ValueError: there are several backbones, and a single file.
    """
    if "" not in weights:
        return dict(weights)
    if AUTO in backbones:
        return {AUTO: weights[""]}
    if len(backbones) > 1 and not as_path(weights[""]).is_dir():
        raise ValueError(
            f"--weights {weights['']}: with several backbones name each: NAME=FILE[,NAME=FILE], or give a folder of "
            f"files NAME.safetensors"
        )
    return dict.fromkeys(backbones, weights[""])


def parse_key_values(text: str) -> dict[str, Value]:
    """Parse `--backbone-args`: KEY=VALUE[,KEY=VALUE].

    >>> parse_key_values("pad_type=same,drop_rate=0.1,scriptable=False")
    {'pad_type': 'same', 'drop_rate': 0.1, 'scriptable': False}

    Raises:
        ValueError: the text has another form.
    """
    return {name: _literal(value) for name, value in _parse_pairs("--backbone-args", text).items()}


def strategies_help() -> str:
    """Return the help of `--strategies`: every strategy with its parameters and description, by group."""
    lines = []
    for group, entries in STRATEGIES.items():
        lines.append(f"- {group}:")
        for name, parameters in entries.items():
            entry = f"{_entries('strategy', {name: parameters})}: {strategy_descriptions()[name]}"
            lines.append(textwrap.fill(entry, HELP_WIDTH, initial_indent="  ", subsequent_indent="      "))
    aliases = ", ".join(f"{alias} is another name for {name}" for alias, name in ALIASES["strategy"].items())
    introduction = (
        f"Strategies that compete, separated by commas; by default those with *, layer_decay and freeze_first only on "
        f"networks that they suit (docs/search.md). Parameters in brackets are set with --fix, or searched with "
        f"--vary; {aliases}."
    )
    return "\n".join([_wrap(introduction), *lines])


def vary_help() -> str:
    """Return the help of `--vary`: every axis of the search space with its entries."""
    introduction = (
        "AXIS=VALUES to search instead of the default ones, once for each axis: learning_rate=1e-4..1e-2, "
        "optimizer=sgd,ranger, clip_norm=none,0.5, freeze_epochs=1..4, batch_size=16,32."
    )
    numbers = [
        name for name, row in NUMBERS.items() if row.search is not None or name in ("image_size", "learning_rate")
    ]
    kinds = {kind: _entries(kind, row.entries) for kind, row in CHOICES.items() if kind != "strategy"}
    return "\n".join(
        [
            _wrap(introduction),
            _wrap(f"Numeric axes: {', '.join(numbers)}."),
            _wrap(
                "Axes of names, by default those with *, as far as they suit the network and the number of images "
                "(docs/search.md):"
            ),
            *_bullets({"strategy": "as in --strategies", **kinds}),
            "Parameters in brackets are axes too: alpha=0.2..1.0.",
        ]
    )


def _entries(kind: str, entries: Mapping[str, tuple[str, ...]]) -> str:
    """The entries of a table: `name* (parameters)`, with a star if a sweep tries the entry by default."""
    return ", ".join(
        name + "*" * (name in CHOICES[kind].search) + (f" ({', '.join(parameters)})" if parameters else "")
        for name, parameters in entries.items()
    )


def _bullets(items: Mapping[str, str]) -> list[str]:
    return [textwrap.fill(f"- {title}: {text}", HELP_WIDTH, subsequent_indent="  ") for title, text in items.items()]


def _wrap(text: str) -> str:
    return textwrap.fill(text, HELP_WIDTH, break_on_hyphens=False)


def _parse_pairs(flag: str, text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    if not parse_names(text):
        raise ValueError(f"{flag} {text}: must be NAME=VALUE[,NAME=VALUE]")
    for part in parse_names(text):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or not value:
            raise ValueError(f"{flag} {text}: must be NAME=VALUE[,NAME=VALUE], but {part!r} is not NAME=VALUE")
        if name in pairs:
            raise ValueError(f"{flag} {text}: {name} is given twice")
        pairs[name] = value
    return pairs


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if value is None or isinstance(value, str | int | float | bool) else text


def _pairs_spec(parse: Callable[[str], Mapping[str, Any]]) -> tyro.constructors.PrimitiveConstructorSpec[Any]:
    """A flag that is written as NAME=VALUE[,NAME=VALUE]; an empty text sets nothing."""

    def parse_flag(texts: list[str]) -> Mapping[str, Any]:
        try:
            return parse(texts[0]) if texts[0] else {}
        except ValueError as error:
            raise FlagError(str(error)) from error

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="STR",
        instance_from_str=parse_flag,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=_write_pairs,
    )


def _write_pairs(pairs: Mapping[str, Any]) -> list[str]:
    return [",".join(f"{name}={value}" if name else str(value) for name, value in pairs.items())]


if TYPE_CHECKING:
    Names = tuple[str, ...]
    StoragePath = Path
else:
    Names = Annotated[
        tuple[str, ...],
        tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="STR",
            instance_from_str=lambda texts: parse_names(texts[0]),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda names: [",".join(names)],
        ),
    ]
    """Names separated by commas."""
    # A path in an object store is not a `pathlib.Path` to isinstance, which tyro asks.
    StoragePath = Annotated[
        Any,
        tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="PLACE",
            instance_from_str=lambda texts: as_path(texts[0]),
            is_instance=lambda value: hasattr(value, "joinpath"),
            str_from_instance=lambda path: [str(path)],
        ),
    ]
    """A local folder, or an address in an object store, whose two slashes a Path would merge into one."""

WEIGHTS = _pairs_spec(parse_weights)
"""Weights files by backbone."""

KEY_VALUES = _pairs_spec(parse_key_values)
"""Arguments of a network by name."""

PARTS = _pairs_spec(parse_parts)
"""Folders by part."""
