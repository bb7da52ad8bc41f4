"""Class balance: whether some class has far fewer training images than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xfer.data.source import preview

MAX_RATIO = 5
"""Largest ratio of class sizes that counts as balanced. Above it, a network that never predicts the rarest class loses
little accuracy."""


@dataclass(frozen=True)
class Imbalance:
    """Classes of very different sizes: the rarest has less than a fifth of the images of the most frequent one."""

    rarest: tuple[str, ...]
    """Every class with less than a fifth of the images of the most frequent one, the rarest first."""
    fewest: int
    """Number of training images of the rarest class."""
    most_frequent: str
    most: int
    """Number of training images of the most frequent class."""

    @property
    def line(self) -> str:
        """The counts and names in one clause.

        >>> find_imbalance([40, 6, 5], ["ant", "bee", "wasp"]).line
        'the most frequent class, ant, has 40 training images, and wasp has 5 (rare: wasp, bee)'
        """
        others = f" (rare: {preview(self.rarest)})" if len(self.rarest) > 1 else ""
        return (
            f"the most frequent class, {self.most_frequent}, has {self.most:,} training images, and {self.rarest[0]} "
            f"has {self.fewest:,}{others}"
        )


def find_imbalance(counts: Sequence[int], classes: Sequence[str]) -> Imbalance | None:
    """Return the imbalance of a data set; None if no class has less than a fifth of the images of another one.

    Args:
        counts: number of training images of each class.
        classes: their names. Classes without images are ignored.
    """
    by_count = sorted((count, name) for count, name in zip(counts, classes, strict=True) if count)
    if not by_count:
        return None
    most = by_count[-1][0]
    rare = [(count, name) for count, name in by_count if MAX_RATIO * count < most]
    if not rare:
        return None
    most_frequent = next(name for count, name in by_count if count == most)
    return Imbalance(tuple(name for _, name in rare), rare[0][0], most_frequent, most)
