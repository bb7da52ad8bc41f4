"""Groups: images of one patient, camera, video, ..., which are alike beyond their class.

A drawn part holds a group as a whole or not at all (`Pack.split_groups`). Groups across given parts are reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from xfer.data.copies import PART_ORDER
from xfer.data.pack import Pack
from xfer.data.source import preview
from xfer.data.split import Split
from xfer.records import Part


@dataclass(frozen=True)
class GroupReport:
    """What readers have to know about the groups of a data set."""

    column: str
    """What the groups are: the name of the table's column."""
    count: int
    largest: str
    """Name of the group with most images."""
    largest_images: int
    """Number of its images."""
    ungrouped: int
    """Number of images without a group."""
    across_parts: Mapping[str, Mapping[str, int]]
    """Number of `groups` that are in both of two given parts, and of the later part's `images` in them, by pair of
    parts: "train-val", "train-test", "val-test"."""
    warnings: tuple[str, ...]
    """Sentences on groups across given parts, and on classes most of whose images are in one group."""

    @property
    def line(self) -> str:
        """The counts in one line."""
        ungrouped = f"; {self.ungrouped:,} images without one" if self.ungrouped else ""
        return (
            f"groups ({self.column}): {self.count:,}, the largest {self.largest} with {self.largest_images:,} images"
            f"{ungrouped}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, without the warnings."""
        return {
            "column": self.column,
            "count": self.count,
            "largest": self.largest,
            "largest_images": self.largest_images,
            "ungrouped": self.ungrouped,
            "across_parts": {pair: dict(counts) for pair, counts in self.across_parts.items()},
        }


def report_groups(
    groups: Sequence[str | None],
    labels: Sequence[int],
    parts: Sequence[Part | None],
    classes: Sequence[str],
    column: str,
) -> GroupReport | None:
    """Count groups, list those that lie across given parts, and warn of classes that one group dominates.

    Args:
        groups: [N], the group of each image; empty without groups.
        labels: [N], indices into the classes.
        parts: [N], as the data set gives them.
        classes: names of the classes.
        column: what the groups are.

    Returns:
        None without groups.
    """
    sizes = Counter(group for group in groups if group is not None)
    if not sizes:
        return None
    largest = min(sizes, key=lambda group: (-sizes[group], group))
    across: dict[str, dict[str, int]] = {}
    warnings = []
    members = {part: [group for group, of in zip(groups, parts, strict=True) if of == part] for part in PART_ORDER}
    for earlier, later in combinations([part for part in PART_ORDER if members[part]], 2):
        shared = sorted({group for group in members[earlier] if group is not None} & {*members[later]} - {None})
        if shared:
            images = sum(group in shared for group in members[later])
            across[f"{earlier}-{later}"] = {"groups": len(shared), "images": images}
            verb = "is" if len(shared) == 1 else "are"
            warnings.append(
                f"WARNING: {len(shared):,} of {len(sizes):,} groups ({column}) {verb} in {earlier} and {later}, with "
                f"{images:,} of {len(members[later]):,} {later} images: {preview(shared)}. Accuracy on them says "
                f"little about new groups: move each group into one part."
            )
    if not (members["val"] and members["test"]):
        warnings += _dominated(groups, labels, parts, classes, column)
    return GroupReport(column, len(sizes), largest, sizes[largest], groups.count(None), across, tuple(warnings))


def missing_after_drawing(pack: Pack, split: Split) -> list[str]:
    """Return a warning for each part without images of some class, because whole groups were drawn."""
    if not pack.groups or not split.can_redraw:
        return []
    warnings = []
    for part, indices in (("validation", split.val), ("test", split.test)):
        present = {*pack.labels[indices].tolist()}
        missing = [name for label, name in enumerate(pack.classes) if label not in present]
        if missing:
            warnings.append(
                f"WARNING: the {part} part has no images of {preview(missing)}, because whole groups "
                f"({pack.group_column}) are drawn. Add groups, or put the images into train, val and test yourself."
            )
    return warnings


def _dominated(
    groups: Sequence[str | None],
    labels: Sequence[int],
    parts: Sequence[Part | None],
    classes: Sequence[str],
    column: str,
) -> list[str]:
    """Return a warning for each class most of whose divided images are in one group."""
    counts: dict[int, Counter[str]] = {label: Counter() for label in range(len(classes))}
    for index, (group, label, part) in enumerate(zip(groups, labels, parts, strict=True)):
        if part in (None, "train"):
            counts[label][f"image {index}" if group is None else f"group {group}"] += 1
    warnings = []
    for label, name in enumerate(classes):
        total = counts[label].total()
        (group, images), *others = counts[label].most_common() or [("", 0)]
        if images == 1 or 2 * images <= total:
            continue
        effect = (
            f"so {images:,} of them are in one part, and the other parts are left with the rest"
            if others
            else "so the class is in the training part only"
        )
        warnings.append(
            f"WARNING: {group} ({column}) holds {images:,} of {total:,} images of class {name}, {effect}. Add images "
            f"of other groups."
        )
    return warnings
