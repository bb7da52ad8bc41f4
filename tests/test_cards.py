"""Every method named by a source has a measured number on its card, equal to that in the committed table."""

from __future__ import annotations

import importlib.util
import re
import sys
from types import ModuleType

import pytest

from benchmarks import cards
from xfer.recipe import CHOICE_TABLES

NAMED = [(kind, entry) for kind, entries in cards.BENCHMARKED_ENTRIES.items() for entry in entries]
PAGE = cards.OUTPUT_FILE.read_text()


def measured(kind: str, entry: str) -> str:
    """The measured paragraph on the card of an entry, on one line."""
    paragraphs = (CHOICE_TABLES[kind][entry].__doc__ or "").split("\n\n")
    matches = [" ".join(part.split()) for part in paragraphs if part.strip().startswith("Measured:")]
    assert len(matches) <= 1
    return matches[0] if matches else ""


def test_the_table_equals_the_output_of_its_command() -> None:
    assert "python -m benchmarks.cards --data ../shared/data/" in PAGE
    assert re.search(r"^20\d\d-\d\d-\d\d, ", PAGE, re.MULTILINE)


def test_every_method_named_by_a_source_is_in_the_tables() -> None:
    assert [(kind, entry) for kind, entry in NAMED if entry not in CHOICE_TABLES[kind]] == []


@pytest.mark.parametrize(("kind", "entry"), NAMED)
def test_every_method_named_by_a_source_has_a_number_over_three_seeds_on_its_card(kind: str, entry: str) -> None:
    text = measured(kind, entry)
    assert re.search(r"\d+\.\d% ± \d+\.\d%", text), f"{kind} {entry} has no number: run benchmarks/cards.py --write"
    assert "3 seeds" in text


@pytest.mark.parametrize("kind", CHOICE_TABLES)
def test_every_number_on_a_card_is_in_the_table(kind: str) -> None:
    for entry in CHOICE_TABLES[kind]:
        rows = [row for row in PAGE.splitlines() if row.startswith(f"| {kind} | `{entry}")]
        for number in re.findall(r"\d+\.\d% ± \d+\.\d%", measured(kind, entry)):
            assert any(number in row for row in rows), f"{kind} {entry}: {number}"


def module_from(path: object, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, str(path))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_writing_a_number_changes_only_the_docstring_and_replaces_the_old_number(tmp_path, monkeypatch) -> None:
    path = tmp_path / "cards_of_a_test.py"
    path.write_text(
        '''def short():\n    """Does it."""\n    return 1\n\n\n'''
        '''def long(rate=1):\n    """Does it.\n\n    Helps.\n\n    Raises:\n        ValueError: why.\n    """\n'''
        """    return rate\n"""
    )
    monkeypatch.setitem(sys.modules, "cards_of_a_test", None)
    for text in ("Measured: first.", "Measured: second."):
        for name in ("short", "long"):
            cards.write_measured_paragraph(getattr(module_from(path, "cards_of_a_test"), name), text)
    module = module_from(path, "cards_of_a_test")
    assert (module.short(), module.long()) == (1, 1)
    assert module.short.__doc__.split("\n\n") == ["Does it.", "    Measured: second.\n    "]
    assert [part.strip() for part in module.long.__doc__.split("\n\n")] == [
        *("Does it.", "Helps.", "Measured: second.", "Raises:\n        ValueError: why."),
    ]
