"""Untrusted names are shown literally, and recipes and lists are formatted as text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from sweeps.reporting.formatting import describe_recipe, escape_control_characters, escape_markdown, join_words
from tests.reporting.conftest import a_recipe


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("gpj.\u202eevil", r"gpj.\u202eevil"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        ("\udcff", r"\udcff"),
        ("Ameise ä 蟻 🐜", "Ameise ä 蟻 🐜"),
    ],
)
def test_control_characters_are_replaced_by_escape_sequences(text: str, shown: str) -> None:
    assert escape_control_characters(text) == shown


@given(st.text())
def test_escaped_text_is_one_printable_line(text: str) -> None:
    shown = escape_control_characters(text)
    assert len(shown.splitlines()) <= 1
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in shown)
    shown.encode()


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), min_size=1))
def test_escaped_markdown_shows_the_text_literally_in_one_table_cell(text: str) -> None:
    tokens = (
        MarkdownIt("commonmark").enable("table").parse(f"| a | b |\n| - | - |\n| {escape_markdown(text)} | end |\n")
    )
    cells = [token for token in tokens if token.type == "inline"]
    assert [cell.content == "end" for cell in cells] == [False, False, False, True]
    children = cells[2].children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    assert "".join(child.content for child in children) == text


@pytest.mark.parametrize("text", ["# no heading", "- no item", "1. no item", "=", "---", "+ no item", "> no quote"])
def test_escaped_markdown_starts_no_block(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(f"{escape_markdown(text)}\n")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]


def test_the_description_of_a_recipe_is_complete() -> None:
    assert describe_recipe(a_recipe("freeze_then_unfreeze", clip_norm=1.0)) == (
        "freeze_then_unfreeze(freeze_epochs=2) on mobilenetv2_100 at 128 px, adam with learning rate 0.001 and weight "
        "decay 0.0001, onecycle schedule, flip augmentation, no mixing, cross_entropy loss, gradients clipped at norm "
        "1, batch size 32, 6 epochs"
    )


def test_items_are_joined_as_an_english_enumeration() -> None:
    assert [join_words(items) for items in ([], ["a"], ["a", "b"])] == ["", "a", "a and b"]
