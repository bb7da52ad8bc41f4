"""Example, Source: a data set before it is read. One function per layout makes a Source, see `xfer.data.layouts`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from xfer.data.images import LazyImage
from xfer.records import Part

PART_ALIASES: dict[str, Part] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What a part of the data may be called."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image before it is read."""

    image: LazyImage
    label: int
    """Index into the source's class names."""
    part: Part | None = None
    """The part it was given for; None where the source leaves that to us."""


@dataclass(frozen=True)
class Source:
    """A data set before it is read: where its images are, and what they show."""

    name: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = field(default=())
    """What a reader of the report should know about where the data came from."""


def filter_labels(source: Source, labels: Collection[int]) -> Source:
    """Of a source the classes with these labels, in their order and numbered anew."""
    kept = sorted(set(labels))
    place = {label: index for index, label in enumerate(kept)}
    examples = tuple(
        Example(each.image, place[each.label], each.part) for each in source.examples if each.label in place
    )
    return replace(source, classes=tuple(source.classes[label] for label in kept), examples=examples)


def validate_source(source: Source, where: object, expected: str) -> Source:
    """The source, if something can be learned from it.

    Args:
        source: what was found.
        where: what to call the place in a message.
        expected: how `where holds no images` goes on.

    Raises:
        ValueError: no images, a single class, or a class without images in the part trained on.
    """
    if not source.examples:
        raise ValueError(f"{where} holds no images {expected}")
    if len(source.classes) < 2:
        raise ValueError(f"{where} holds one class only ({source.classes[0]}): there is nothing to tell apart")
    trained = {example.label for example in source.examples if example.part in (None, "train")}
    empty = [name for label, name in enumerate(source.classes) if label not in trained]
    if empty:
        raise ValueError(f"{where}: no training images for {preview(empty)}. Add some, or leave the class out")
    return source


def preview(names: Iterable[object]) -> str:
    """A few of the names, and how many more there are.

    >>> preview("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    words = [str(name) for name in names]
    shown = ", ".join(words[:5])
    return shown if len(words) <= 5 else f"{shown} and {len(words) - 5} more"
