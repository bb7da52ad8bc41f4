"""Every example in a docstring of xfer does what it says, and every choice has a card: what, when, and whose idea."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import xfer
from xfer.recipe import CHOICE_TABLES

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(xfer.__path__, "xfer.") if "__main__" not in module.name
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(bool(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name))) > 5


# Cards

ENTRIES = [(kind, name) for kind, table in CHOICE_TABLES.items() for name in table]
NOBODYS_IDEA = {
    ("schedule", "constant"),
    ("augmentation", "none"),
    ("mixing", "none"),
    ("loss", "cross_entropy"),
    ("embedding_loss", "none"),
    ("head", "linear"),
    ("activation", "keep"),
    ("batch_norm", "with_weights"),
    ("colour", "rgb"),
}
"""What is done where nothing else is: there is nobody to name."""
NOTHING_TO_SAY = {("activation", "keep"), ("colour", "rgb")}
"""Of those, the ones whose first line is all there is to say."""
SOURCE = r"[A-Z][\w-]+(?: & [A-Z][\w-]+| et al\.)?(?:'s)? \(?(?:19|20)\d\d\b|\b[Ss]ources? 00\d\b"
"""An author and a year, or one of the texts that the project set out from."""

each_entry = pytest.mark.parametrize(("kind", "name"), ENTRIES)


def card(kind, name):
    """The paragraphs of an entry's docstring, without examples and sections."""
    paragraphs = inspect.getdoc(CHOICE_TABLES[kind][name]).split("\n\n")
    return [each for each in paragraphs if not each.startswith((">>>", "Raises:", "Args:", "Returns:"))]


@each_entry
def test_a_card_begins_with_one_line_that_says_what_it_does(kind, name):
    first, *_ = card(kind, name)
    assert "\n" not in first
    assert re.search(r"[.)]$", first)
    assert len(first.split()) > 3
    assert first not in [card(kind, other)[0] for other in CHOICE_TABLES[kind] if other != name]


@each_entry
def test_a_card_says_when_it_helps(kind, name):
    words = [paragraph for paragraph in card(kind, name) if not paragraph.startswith("Measured:")]
    assert (len(words) == 1) is ((kind, name) in NOTHING_TO_SAY)


@each_entry
def test_a_card_names_whose_idea_it_was(kind, name):
    assert bool(re.search(SOURCE, "\n".join(card(kind, name)))) is ((kind, name) not in NOBODYS_IDEA)
