"""The help: it shows every flag, agrees with the tables, and appears at once."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine.options import CliOptions
from sweeps.engine.plan import Plan
from xfer.choices import ALIASES
from xfer.hyperparameters import CHOICES, STRATEGIES
from xfer.methods.descriptions import strategy_descriptions

ROOT = Path(__file__).parents[2]
PAGE_FIELDS = {"experiment", "question", "source", "edits", "arms"}
"""Fields of a plan that only its page sets."""
RENAMED = {"backbones": "backbone"}
"""Flags that are not named as their field."""
FLAGS = [
    f"--{RENAMED.get(field.name, field.name).replace('_', '-')}"
    for row in (Plan, CliOptions)
    for field in dataclasses.fields(row)
    if field.name not in PAGE_FIELDS
]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def help_text() -> str:
    result = python("-m", "sweeps.folder", "--help")
    assert result.returncode == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", result.stdout).split())


def names_between(help_text: str, before: str, after: str) -> set[str]:
    """The names that the help lists between two phrases."""
    match = re.search(re.escape(before) + "(.*?)" + re.escape(after), help_text)
    assert match, f"the help does not contain {before!r} ... {after!r}"
    return set(re.findall(r"\w+", match[1])) - {"and", "or"}


@pytest.mark.parametrize("flag", FLAGS)
def test_every_field_has_a_flag_with_a_help_text(help_text: str, flag: str) -> None:
    assert re.search(rf"{re.escape(flag)}(, --no-[a-z-]+)?( [A-Z]+| \S+\|[A-Z]+)? [A-Z]\w+", help_text)


def test_the_help_lists_every_strategy_with_its_parameters_and_what_it_does(help_text: str) -> None:
    for group, entries in STRATEGIES.items():
        lines = (
            name
            + "*" * (name in CHOICES["strategy"].search)
            + (f" ({', '.join(own)})" if own else "")
            + f": {strategy_descriptions()[name]}"
            for name, own in entries.items()
        )
        assert f"- {group}: {' '.join(lines)}" in help_text
    assert "clip*: full fine-tuning, gradients clipped" in help_text


def test_the_help_names_the_aliases_of_strategies(help_text: str) -> None:
    for alias, name in ALIASES["strategy"].items():
        assert f"{alias} is another name for {name}" in help_text


@pytest.mark.parametrize("kind", [kind for kind in CHOICES if kind != "strategy"])
def test_the_help_lists_every_entry_of_every_other_table(help_text: str, kind: str) -> None:
    match = re.search(rf"- {kind}: (.*?)(?: - \w+: | Parameters in brackets)", help_text)
    assert match
    entries: dict[str, Any] = {}
    for name, star, brackets in re.findall(r"(\w+)(\*?)(?: \(([\w, ]+)\))?(?:, |$)", match[1].strip()):
        entries[name] = bool(star), tuple(re.findall(r"\w+", brackets))
    assert entries == {name: (name in CHOICES[kind].search, own) for name, own in CHOICES[kind].entries.items()}


def test_the_help_names_exactly_the_numeric_axes(help_text: str) -> None:
    from sweeps.engine.search_space.defaults import AXES

    assert names_between(help_text, "Numeric axes:", ".") == {*AXES, "image_size", "learning_rate"} - set(CHOICES)


def test_the_help_names_exactly_the_samplers(help_text: str) -> None:
    from sweeps.engine.samplers.ask_tell import SAMPLERS

    assert names_between(help_text, "proposes recipes after the known good ones:", ".") == set(SAMPLERS)


def test_the_help_names_exactly_the_schedulers(help_text: str) -> None:
    from sweeps.engine.schedulers import SCHEDULERS

    assert names_between(help_text, "Scheduler that stops trials that fall behind:", ".") == set(SCHEDULERS)


def test_the_help_names_exactly_the_objectives(help_text: str) -> None:
    from xfer.objectives import OBJECTIVES

    alone = names_between(help_text, "ranks and stops trials by, on the validation set:", ".")
    assert alone | names_between(help_text, "With a second one, as in", ", the search") == set(OBJECTIVES)
    assert alone == set(OBJECTIVES) - {"seconds"}


def test_every_example_in_the_help_of_vary_is_accepted(help_text: str) -> None:
    from sweeps.engine.search_space.overrides import space_for

    match = re.search(r"--vary .*?once for each axis: (.*?) Numeric axes:", help_text)
    assert match
    examples = re.findall(r"([a-z_]+)=([^=]*?)(?:, (?=[a-z_]+=)|\.$)", match[1].replace("sgd, ranger", "sgd,ranger"))
    assert len(examples) == 5
    for axis, values in examples:
        space_for(["a"], 8, edits={axis: values})


def test_the_help_shows_the_defaults(help_text: str) -> None:
    for flag, default in (("--storage PLACE", "runs"), ("--reports PATH", "reports"), ("--trials INT", "24")):
        assert re.search(rf"{flag} [^(]*\(default: {default}\)", help_text)


@pytest.mark.parametrize("page", ["folder", "quickstart", "stanford_cars"])
def test_the_help_does_not_wait_for_torch_ray_and_other_slow_imports(page: str) -> None:
    result = python("-X", "importtime", "-m", f"sweeps.{page}", "--help")
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "tyro" in imported
    assert imported & {"torch", "ray", "optuna", "mlflow", "timm", "pandas", "sklearn", "scipy"} == set()
