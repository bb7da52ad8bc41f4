"""Writes tables, and lists what was read from them."""

from __future__ import annotations

NAMES = ("1.png", "2.png", "3.png", "more/4.png")
PLAIN = ("path,label", "1.png,robin", "2.png,crow", "more/4.png,robin")


def write(root, *rows, name="labels.csv", encoding="utf-8"):
    (root / name).write_bytes("\n".join(rows).encode(encoding))
    return root / name


def listing(source, root):
    return [
        (str(example.image.path.relative_to(root)), source.classes[example.label], example.part)
        for example in source.examples
    ]


def skipped(source):
    return {skip.reason: skip.count for skip in source.skipped}
