"""Recognize the names that data sets give to their training, validation and test parts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from xfer.records import Part

PART_WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Part by the word for it, in lower case."""

AFFIXES = (
    *("images", "image", "imgs", "img", "photos", "photo", "pictures", "picture", "pics", "pic", "samples"),
    *("datasets", "dataset", "data", "sets", "set", "split", "part", "folder", "dir", "seg", r"\d+"),
)
"""Words before or after the word for a part that do not change its meaning, as in seg_train or training_set."""

_WORDS = "|".join(sorted(PART_WORDS, key=len, reverse=True))
_AFFIX = "|".join(AFFIXES)
_PART_NAME = re.compile(rf"(?:(?:{_AFFIX})[\W_]*)*({_WORDS})(?:[\W_]*(?:{_AFFIX}))*")

NO_PARTS: Mapping[str, str] = {"": "none"}
"""Value of `--parts none`: every folder is a class."""


def part_named(name: str) -> Part | None:
    """Return the part that a folder's name stands for; None if it does not name a part.

    >>> [part_named(name) for name in ("Training", "TEST_SET", "seg_train", "train2017", "dev", "trainer")]
    ['train', 'test', 'train', 'train', 'val', None]
    """
    match = _PART_NAME.fullmatch(name.casefold().strip(" _-."))
    return PART_WORDS[match[1]] if match else None


def named_parts(names: Collection[str]) -> dict[str, Part]:
    """Return the part of each name that stands for one.

    Names with a common prefix or suffix are recognized together, if one of them is for training.

    >>> named_parts(["cars_train", "cars_test", "readme"])
    {'cars_train': 'train', 'cars_test': 'test'}
    >>> named_parts(["bullet_train", "test_tube"])
    {}
    """
    parts = {name: part for name in names if (part := part_named(name))}
    groups: dict[tuple[str, ...], dict[str, Part]] = defaultdict(dict)
    for name in names:
        words = [word for word in re.split(r"[\W_]+", name.casefold()) if word]
        known = [index for index, word in enumerate(words) if word in PART_WORDS]
        if len(known) == 1 and name not in parts:
            rest = (*words[: known[0]], "*", *words[known[0] + 1 :])
            groups[rest][name] = PART_WORDS[words[known[0]]]
    for group in groups.values():
        if len(set(group.values())) > 1 and "train" in group.values():
            parts |= group
    return {name: parts[name] for name in names if name in parts}


def parse_parts(text: str) -> dict[str, str]:
    """Parse `--parts`: train=NAME[,val=NAME][,test=NAME], or none.

    Returns:
        The folder of each part; empty for an empty text, and NO_PARTS for `none`.

    >>> parse_parts("train=a, test=b"), parse_parts("none"), parse_parts("")
    ({'train': 'a', 'test': 'b'}, {'': 'none'}, {})

    Raises:
        ValueError: the text has another form.
    """
    if text.strip().casefold() == "none":
        return dict(NO_PARTS)
    parts: dict[str, str] = {}
    for pair in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, folder = (piece.strip() for piece in pair.partition("="))
        part = PART_WORDS.get(name.casefold())
        if not part or not equals or not folder:
            raise ValueError(f"--parts {text}: must be train=NAME[,val=NAME][,test=NAME], or none; got {pair!r}")
        if part in parts:
            raise ValueError(f"--parts {text}: {part} is given twice")
        parts[part] = folder
    if parts and "train" not in parts:
        raise ValueError(f"--parts {text}: the training part is missing; add train=NAME")
    return parts
