"""Interface of data sets: a `Source` lists labelled images that have not been read yet.

Each layout has a module with one function that returns a `Source`; `xfer.data.layouts` chooses among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from xfer.choices import closest_names_message, unknown_name_message
from xfer.data.images import LazyImage
from xfer.records import Part
from xfer.text_output import escape_undecoded

PART_ALIASES: dict[str, Part] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Part by the name that a data set gives it, in lower case."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled image that has not been read yet."""

    image: LazyImage
    label: int
    """Index into the source's class names."""
    part: Part | None = None
    """The part that the data set puts it in; None if the data set has no parts."""
    group: str | None = None
    """Name of the patient, camera, video, ... that it shows or comes from; None if it has none of its own."""


MAX_NAMED = 5
"""Number of names that messages and lists of skipped files show."""


@dataclass(frozen=True, slots=True)
class SkippedFiles:
    """Files of a data set, or rows of a table, that are not used, for one reason."""

    reason: str
    count: int
    first: tuple[str, ...] = ()
    """Names of the first few."""

    @property
    def names(self) -> str:
        """The first names, and the number of the others."""
        return preview([*self.first, *[""] * (self.count - len(self.first))]) if self.first else ""


def describe_skipped(skip: SkippedFiles) -> str:
    """Return number, reason and names of skipped files.

    >>> describe_skipped(SkippedFiles("empty file", 1, ("a/1.jpg",)))
    '1 empty file (a/1.jpg)'
    """
    return f"{skip.count:,} {skip.reason}" + (f" ({skip.names})" if skip.names else "")


@dataclass(frozen=True)
class Source:
    """A data set that has not been read yet: its images, labels and class names."""

    name: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = field(default=())
    """Sentences about the data for readers of the report."""
    skipped: tuple[SkippedFiles, ...] = field(default=(), compare=False)
    """Files or rows that are not among the examples, by reason. Seen = examples + skipped."""
    unit: str = field(default="files", compare=False)
    """What `skipped` counts: files, rows or images."""
    group_column: str = field(default="", compare=False)
    """Name of the table's column that gives the groups; empty without groups."""


def filter_labels(source: Source, labels: Collection[int]) -> Source:
    """Return a source with only the classes of these labels, in their order and renumbered from 0."""
    selected = sorted(set(labels))
    new_label = {label: index for index, label in enumerate(selected)}
    examples = tuple(
        replace(example, label=new_label[example.label]) for example in source.examples if example.label in new_label
    )
    skipped = source.skipped
    if others := len(source.examples) - len(examples):
        skipped = (*skipped, SkippedFiles("class not selected", others))
    classes = tuple(source.classes[label] for label in selected)
    return replace(source, classes=classes, examples=examples, skipped=skipped)


def select_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """Return a source with only some classes, in its own order.

    Args:
        source: the data set.
        classes: names of classes, or a single integer N for the first N in alphabetical order; empty selects all.

    Raises:
        ValueError: fewer than two classes, more than the source has, a duplicate, or an unknown name.
    """
    if not classes:
        return source
    first = classes[0].strip()
    if len(classes) == 1 and first.lstrip("+-").isdecimal():
        if not 2 <= int(first) <= len(source.classes):
            raise ValueError(
                f"{source.name} has {len(source.classes)} classes: cannot select {first}. "
                f"Give a number from 2 to {len(source.classes)}"
            )
        classes = tuple(sorted(source.classes)[: int(first)])
    for name in classes:
        if name not in source.classes:
            message = unknown_name_message if len(source.classes) <= 20 else closest_names_message
            raise ValueError(message(f"class of {source.name}", name, source.classes))
    if len(set(classes)) < max(2, len(classes)):
        raise ValueError(f"select at least two different classes of {source.name}, not {', '.join(classes)}")
    selected = filter_labels(source, [label for label, name in enumerate(source.classes) if name in classes])
    if len(selected.classes) == len(source.classes):
        return selected
    note = (
        f"{len(selected.classes)} of {len(source.classes)} classes were selected; images of other classes are left out."
    )
    return replace(selected, notes=(*source.notes, note))


def validate_source(source: Source, location: object, expected: str) -> Source:
    """Return the source if a classifier can be trained on it.

    Args:
        source: the data set.
        location: what messages call it.
        expected: continuation of "`location` holds no images".

    Raises:
        ValueError: no images, a single class, a class without training images, or a name that is not UTF-8.
    """
    check_names(source, location)
    if not source.examples:
        raise ValueError(f"{location} holds no images {expected}")
    if len(source.classes) < 2:
        raise ValueError(f"{location} holds one class only ({source.classes[0]}): there is nothing to tell apart")
    trained = {example.label for example in source.examples if example.part in (None, "train")}
    empty = [name for label, name in enumerate(source.classes) if label not in trained]
    if empty:
        raise ValueError(f"{location}: no training images for {preview(empty)}. Add some, or leave the class out")
    return source


def check_readable_parts(source: Source, readable: Iterable[Example], first: str) -> None:
    """Check that each part of a data set has an image that can be read.

    Args:
        source: the data set.
        readable: its images that can be read.
        first: the first image that cannot be read, with the reason.

    Raises:
        ValueError: no image of a part can be read.
    """
    present = {example.part for example in readable}
    for part in ("val", "test"):
        if part not in present and any(example.part == part for example in source.examples):
            raise ValueError(
                f"no image of the {part} set of {source.name} can be read; the first unreadable one: {first}"
            )


def missing_class_notes(source: Source) -> list[str]:
    """Return a warning for each of the validation and the test part that lacks classes."""
    notes = []
    for part in ("val", "test"):
        present = {example.label for example in source.examples if example.part == part}
        if present and (missing := [name for label, name in enumerate(source.classes) if label not in present]):
            notes.append(f"WARNING: the {part} set has no images of {preview(missing)}.")
    return notes


def check_names(source: Source, location: object) -> None:
    """Check that the names of a data set and its classes can be written in UTF-8, as reports and model cards are.

    Names of image files do not matter: only messages show them, escaped.

    Raises:
        ValueError: names are in another encoding; the message shows their bytes.
    """
    names = (source.name, *source.classes)
    wrong = [escaped for name in names if (escaped := escape_undecoded(name)) != name]
    if wrong:
        raise ValueError(
            f"{escape_undecoded(str(location))} has names that are not UTF-8: {preview(wrong)}. Rename these folders, "
            f"for example with convmv"
        )


def preview(names: Iterable[object]) -> str:
    """Return the first five names, and the number of the others.

    >>> preview("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    words = [str(name) for name in names]
    shown = ", ".join(words[:MAX_NAMED])
    return shown if len(words) <= MAX_NAMED else f"{shown} and {len(words) - MAX_NAMED} more"
