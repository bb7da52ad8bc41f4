"""What a strategy does is written once, in the first line of its docstring."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xfer.methods.descriptions import explain_strategy, strategy_descriptions
from xfer.methods.strategies import STRATEGIES


def test_every_strategy_has_a_description_and_nothing_else_has():
    assert strategy_descriptions().keys() == STRATEGIES.keys()


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_description_is_the_first_line_of_the_docstring_and_short_enough_for_a_table(name):
    description, docstring = strategy_descriptions()[name], STRATEGIES[name].__doc__ or ""
    assert docstring.partition("\n")[0].lower() == f"{description}.".lower()
    assert 10 < len(description) <= 64


def test_clip_is_not_mistaken_for_the_network_of_that_name():
    assert explain_strategy("clip") == "clip (full fine-tuning, gradients clipped)"
    assert "CLIP" in (STRATEGIES["clip"].__doc__ or "")


def test_reading_the_descriptions_does_not_import_torch():
    code = "import sys, xfer.methods.descriptions as d; d.strategy_descriptions(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
