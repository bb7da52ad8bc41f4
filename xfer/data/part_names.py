"""Recognize the names that data sets give to their training, validation and test parts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from xfer.records import Part

PART_WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Part by the word for it, in lower case. Training and validation images together are for training."""

AFFIXES = (
    *("images", "image", "imgs", "img", "photos", "photo", "pictures", "picture", "pics", "pic", "samples"),
    *("datasets", "dataset", "data", "sets", "set", "split", "part", "folder", "dir", "seg", r"\d+"),
)
"""Words before or after the word for a part that do not change its meaning, as in seg_train or training_set."""

_WORDS = "|".join(sorted(PART_WORDS, key=len, reverse=True))
_AFFIX = "|".join(AFFIXES)
_PART_NAME = re.compile(rf"(?:(?:{_AFFIX})[\W_]*)*({_WORDS})(?:[\W_]*(?:{_AFFIX}))*")
_TRAIN_AND_VAL = re.compile(r"train(?:ing)?[\W_]*(?:and[\W_]*)?val(?:id(?:ation)?)?(?![a-z])")
_WORD_BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")

NO_PARTS: Mapping[str, str] = {"": "none"}
"""Value of `--parts none`: the data have no parts, and every folder is a class."""


def part_named(name: str) -> Part | None:
    """Return the part that a name stands for; None if it does not name a part.

    >>> [part_named(name) for name in ("Training", "TEST_SET", "seg_train", "train2017", "dev", "trainer")]
    ['train', 'test', 'train', 'train', 'val', None]
    """
    text = _TRAIN_AND_VAL.sub("trainval", re.sub(r"^[\W_]+|[\W_]+$", "", name.casefold()))
    match = _PART_NAME.fullmatch(text)
    return PART_WORDS[match[1]] if match else None


def split_words(name: str) -> list[str]:
    """Return the words of a name in lower case.

    >>> split_words("trainA"), split_words("test-jpg_v2"), split_words("SegmentationClass")
    (['train', 'a'], ['test', 'jpg', 'v', '2'], ['segmentation', 'class'])
    """
    return [word for word in re.split(r"[\W_]+", _WORD_BORDER.sub(" ", name).casefold()) if word]


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
        words = split_words(name)
        known = [index for index, word in enumerate(words) if word in PART_WORDS]
        if len(known) == 1 and name not in parts:
            rest = (*words[: known[0]], "*", *words[known[0] + 1 :])
            groups[rest][name] = PART_WORDS[words[known[0]]]
    for group in groups.values():
        if len(set(group.values())) > 1 and "train" in group.values():
            parts |= group
    return {name: parts[name] for name in names if name in parts}


def possible_parts(names: Collection[str]) -> dict[str, Part]:
    """Return the part in each name if every name has the word for one, at least two different ones.

    Whether these are parts or classes is for the user to say.

    >>> possible_parts(["train-jpg", "test-jpg-v2"]), possible_parts(["train-jpg", "cat"])
    ({'train-jpg': 'train', 'test-jpg-v2': 'test'}, {})
    """
    parts = {name: PART_WORDS[word] for name in names for word in split_words(name) if word in PART_WORDS}
    found = set(parts.values())
    return parts if len(parts) == len(names) and "train" in found and len(found) > 1 else {}


def parse_parts(text: str) -> dict[str, str]:
    """Parse `--parts`: train=NAME[,val=NAME][,test=NAME], or none.

    Returns:
        The folder of each part, or its value in a table; empty for an empty text, and NO_PARTS for `none`.

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
