"""docs/reliability.md: every promise has a test that exists, and a mutation without which one of its tests fails."""

from __future__ import annotations

import re

import pytest

from tests.mutations import MUTATIONS, Mutation
from tests.sweep_commands import ROOT

ROWS = re.findall(r"^\| (\d+)\. ([^|]*) \|[^|]*\| (.*) \|$", (ROOT / "docs/reliability.md").read_text(), re.MULTILINE)
FAULTS, ATTACKS = 17, 10


def promised_tests(cell: str) -> list[tuple[str, str]]:
    """Module below tests/ and a part of names of its tests, which may be empty."""
    found = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", cell)
    return [(module, part) for module, part in found]


def names_in(module: str) -> list[str]:
    return re.findall(r"^def (test_\w+)", (ROOT / "tests" / module).read_text(), re.MULTILINE)


def test_every_fault_and_attack_has_a_row() -> None:
    numbers = [int(number) for number, _, _ in ROWS]
    assert numbers == [*range(1, FAULTS + 1), *range(1, ATTACKS + 1)]


@pytest.mark.parametrize(("number", "what", "cell"), ROWS, ids=[f"{number} {what}" for number, what, _ in ROWS])
def test_the_tests_of_a_promise_exist_and_one_fails_without_its_protection(number: str, what: str, cell: str) -> None:
    promised = promised_tests(cell)
    assert promised
    for module, part in promised:
        assert any(part in name for name in names_in(module)), f"{module} has no test with {part} in its name"
    modules = {module for module, _ in promised}
    assert [mutation for mutation in MUTATIONS if mutation.test.partition("::")[0] in modules], "no mutation"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.file} {mutation.test}")
def test_a_mutation_fits_the_code_and_names_tests(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.old) == (2 if mutation.old == "0o600" else 1), f"{mutation.old!r} is not there once"
    assert mutation.new != mutation.old
    module, _, names = mutation.test.partition("::")
    words = [word for word in names.split(" and ") if word and " or " not in word]
    tests = names_in(module)
    assert any(word in name for word in words[:1] or [""] for name in tests), f"{module} has no test {words}"
