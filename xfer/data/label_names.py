"""Rules for class names that people type: which mean "no label", and which are two spellings of one class."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal

MISSING_LABELS = frozenset({"", "nan", "none", "na", "n/a", "#n/a", "null", "nil", "<na>", "nat", "-nan"})
"""Spellings of a missing label, in lower case, as spreadsheets, pandas and databases write them."""

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d{1,9})?")
QUOTATION_MARKS = "\"'`\u2018\u2019\u201c\u201d"


def is_missing(label: str) -> bool:
    """Return whether a label stands for a missing one.

    >>> is_missing("NaN"), is_missing(" "), is_missing("ant")
    (True, True, False)
    """
    return label.strip().casefold() in MISSING_LABELS


def normalize_label(label: str) -> str:
    """Return a label without surrounding white space and in Unicode's composed form (NFC).

    These differences are invisible, so the table layout merges labels that become equal.
    """
    return unicodedata.normalize("NFC", label.strip()).strip()


def lookalike_key(label: str) -> str:
    """Return a key that is equal for labels that look like spellings of one class.

    Ignored are case, compatibility variants (NFKC), invisible characters, quotation marks around the label, the
    format of a number, and which of space, underscore and hyphen separates two words.

    >>> lookalike_key("Red_Ant") == lookalike_key("red ant"), lookalike_key("01") == lookalike_key("1.0")
    (True, True)
    >>> lookalike_key("-1") == lookalike_key("1")
    False
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
    text = "".join(character for character in text if unicodedata.category(character) not in ("Cf", "Cc"))
    text = text.strip().strip(QUOTATION_MARKS).strip()
    if NUMBER.fullmatch(text):
        sign, digits, exponent = Decimal(text).as_tuple()
        significant = "".join(map(str, digits)).lstrip("0")
        trimmed = significant.rstrip("0")
        return f"{'-' * sign}{trimmed}e{int(exponent) + len(significant) - len(trimmed)}" if trimmed else "0"
    return re.sub(r"(?<=\w)[\s-]+(?=\w)", " ", text.replace("_", " "))


def find_lookalikes(labels: Iterable[str]) -> list[list[str]]:
    """Return groups of different labels that look like one class, each sorted.

    >>> find_lookalikes(["ant", "bee", "Ant", "1", "1.0"])
    [['1', '1.0'], ['Ant', 'ant']]
    """
    groups: Mapping[str, set[str]] = defaultdict(set)
    for label in labels:
        groups[lookalike_key(label)].add(label)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
