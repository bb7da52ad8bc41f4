"""Prompts of zero-shot classification: class names as words, and the sentences around them."""

from __future__ import annotations

import re
from collections.abc import Sequence

PROMPTS: tuple[tuple[str, ...], ...] = (
    ("a photo of a {}.",),
    (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
)
"""Sets of prompts, each a row of its own: the default of CLIP (Radford et al. 2021, section 3.1.4,
https://arxiv.org/abs/2103.00020), and the seven that its authors found for ImageNet by forward selection
(https://github.com/openai/CLIP, Prompt_Engineering_for_ImageNet.ipynb; "itap" is "I took a picture")."""

APOSTROPHES = "'\u2019"

MAX_NAMED = 5
"""Maximum number of class names in an error message."""


def class_words(names: Sequence[str]) -> list[str]:
    """Return class names as words, with blanks instead of separators and without leading numbers.

    >>> class_words(["golden_retriever", "001.Black-footed_Albatross"])
    ['golden retriever', 'Black footed Albatross']

    Args:
        names: the class names, such as names of folders.

    Raises:
        ValueError: some names are not words but numbers or codes, or different classes have the same words.
    """
    words = [_separate(name) for name in names]
    codes = [name for name, text in zip(names, words, strict=True) if not _plain_words(text)]
    if not codes and 2 * len({_plain_words(text) for text in words}) <= len(names):
        codes = list(names)  # class_1, class_2, ...
    if codes:
        shown = ", ".join(map(repr, codes[:MAX_NAMED])) + (", ..." if len(codes) > MAX_NAMED else "")
        raise ValueError(
            f"zero-shot needs class names that are words, got {shown}: rename the classes, or leave out --zero-shot"
        )
    if len({text.casefold() for text in words}) < len(words):
        repeated = next(
            text for number, text in enumerate(words) if text.casefold() in map(str.casefold, words[:number])
        )
        raise ValueError(
            f"zero-shot needs class names of different words, but two classes read {repeated!r}: rename one of them"
        )
    return words


def _separate(name: str) -> str:
    text = " ".join(re.sub(r"[_\-./+]+", " ", name).split())
    return re.sub(r"^\d+ (?=.*[^\W\d_])", "", text)


def _plain_words(text: str) -> tuple[str, ...]:
    """Return the words that could be read aloud: letters only, at least two of them and a vowel (y counts)."""
    words = [word.strip("()[],;:'\"!?&").casefold() for word in text.split()]
    return tuple(
        word
        for word in words
        if len(word) > 1
        and all(letter.isalpha() or letter in APOSTROPHES for letter in word)
        and (not word.isascii() or any(letter in "aeiouy" for letter in word))
    )
