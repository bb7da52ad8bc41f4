"""Every choice has a card: what it does, when it helps, and who proposed it."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import xfer
from xfer.recipe import CHOICE_TABLES

ENTRIES = [(kind, name) for kind, table in CHOICE_TABLES.items() for name in table]
WITHOUT_AUTHOR = {
    ("schedule", "constant"),
    ("augmentation", "none"),
    ("mixing", "none"),
    ("loss", "cross_entropy"),
    ("balance", "none"),
    ("embedding_loss", "none"),
    ("head", "linear"),
    ("activation", "keep"),
    ("batch_norm", "with_weights"),
    ("colour", "rgb"),
}
"""Defaults that change nothing and have no author."""
ONE_LINE_CARDS = {("activation", "keep"), ("colour", "rgb")}
"""Defaults whose first line is the whole card."""
SOURCE = r"[A-Z][\w-]+(?: & [A-Z][\w-]+| et al\.)?(?:'s)? \(?(?:19|20)\d\d\b|\b[Ss]ources? 00\d\b"
"""An author and a year, or one of the texts that the project started from."""

each_entry = pytest.mark.parametrize(("kind", "name"), ENTRIES)


def card(kind, name):
    """Paragraphs of an entry's docstring, without examples and sections."""
    paragraphs = inspect.getdoc(CHOICE_TABLES[kind][name]).split("\n\n")
    return [paragraph for paragraph in paragraphs if not paragraph.startswith((">>>", "Raises:", "Args:", "Returns:"))]


def test_docstrings_contain_examples():
    """pytest itself runs them (--doctest-modules)."""
    names = [module.name for module in pkgutil.walk_packages(xfer.__path__, "xfer.") if "__main__" not in module.name]
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(bool(test.examples) for name in names for test in finder.find(importlib.import_module(name))) > 5


@each_entry
def test_a_card_starts_with_one_unique_line(kind, name):
    first, *_ = card(kind, name)
    assert "\n" not in first
    assert re.search(r"[.)]$", first)
    assert len(first.split()) > 1
    assert first not in [card(kind, other)[0] for other in CHOICE_TABLES[kind] if other != name]


@each_entry
def test_a_card_says_when_it_helps(kind, name):
    prose = [paragraph for paragraph in card(kind, name) if not paragraph.startswith("Measured:")]
    assert (len(prose) == 1) is ((kind, name) in ONE_LINE_CARDS)


@each_entry
def test_a_card_names_its_authors(kind, name):
    text = " ".join("\n".join(card(kind, name)).split())
    assert bool(re.search(SOURCE, text)) is ((kind, name) not in WITHOUT_AUTHOR)
