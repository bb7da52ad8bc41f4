"""Every example in a docstring of xfer does what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import xfer

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(xfer.__path__, "xfer.") if "__main__" not in module.name
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(bool(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name))) > 5
