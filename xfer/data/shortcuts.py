"""Find properties of image files that give the class away, so that a network need not look at the content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

MIN_IMAGES = 5
"""Minimum number of images of a class for which a property can be more than chance."""

MIN_FRACTION = 0.95
"""Minimum fraction of a class that has a value, and of the images with this value that are of the class."""


def shortcut_warnings(
    classes: Sequence[str], labels: Sequence[int], properties: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return a warning for each property that identifies a class.

    >>> shortcut_warnings(["ant", "bee"], [0] * 5 + [1] * 7, {"format": ["PNG"] * 5 + ["JPEG"] * 7})[0][:88]
    'WARNING: the format gives the class away: ant is PNG (5 of 5 images, 0 of other classes)'

    Args:
        classes: names of the classes.
        labels: index of the class of each image.
        properties: value for each image by the name of the property; an empty value is unknown.
    """
    images = Counter(labels)
    warnings = []
    for name, values in properties.items():
        total = Counter(values)
        pairs = Counter(zip(labels, values, strict=True))
        best = {label: max(total, key=lambda value: pairs[label, value]) for label in images}
        found = []
        for label, value in sorted(best.items()):
            count = pairs[label, value]
            alone = count >= MIN_FRACTION * images[label] and count >= MIN_FRACTION * total[value]
            if value and alone and len(images) > 1 and images[label] >= MIN_IMAGES:
                found.append(
                    f"{classes[label]} is {value} ({count:,} of {images[label]:,} images, {total[value] - count:,} of "
                    f"other classes)"
                )
        if found:
            shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
            warnings.append(
                f"WARNING: the {name} gives the class away: {shown}. A network can learn that instead of the content. "
                f"Save the images of all classes in the same way"
            )
    return warnings
