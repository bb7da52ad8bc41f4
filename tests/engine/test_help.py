"""The help: every flag is there, it tells the truth, and it is there at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLAGS = [
    "--data",
    "--classes",
    "--images-per-class",
    "--grey",
    "--backbone",
    "--weights",
    "--backbone-args",
    "--image-size",
    "--trials",
    "--epochs",
    "--strategies",
    "--vary",
    "--fix",
    "--warm-start",
    "--objective",
    "--sampler",
    "--scheduler",
    "--concurrent",
    "--gpus-per-trial",
    "--cpus-per-trial",
    "--time-budget",
    "--cost-budget",
    "--prices",
    "--finalists",
    "--seeds",
    "--seed",
    "--storage",
    "--tracking-uri",
    "--name",
    "--reports",
    "--smoke",
    "--fresh",
]
"""As the issues list them."""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def help_text() -> str:
    shown = python("-m", "sweeps.folder", "--help")
    assert shown.returncode == 0
    return " ".join(re.sub("[│╭╮╰╯─]", " ", shown.stdout).split())


def said(help_text: str, before: str, after: str) -> set[str]:
    """The names that a flag's help lists between two phrases."""
    listed = re.search(re.escape(before) + "(.*?)" + re.escape(after), help_text)
    assert listed, f"the help no longer says {before!r} ... {after!r}"
    return set(re.findall(r"\w+", listed[1])) - {"and", "or"}


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_exists(help_text: str, flag: str) -> None:
    assert re.search(rf"{re.escape(flag)}[ ,]", help_text)


def listed(text: str) -> dict[str, tuple[bool, list[str]]]:
    """The entries in a list of the help: each with whether it bears a star, and what stands in brackets after it."""
    found = {}
    for name, star, brackets in re.findall(r"(\w+)(\*?)(?: \(([\w, ]+)\))?(?:, |$)", text.strip()):
        found[name] = bool(star), re.findall(r"\w+", brackets)
    return found


def there_are(kind: str) -> dict[str, tuple[bool, list[str]]]:
    """The entries of a table: each with whether it is in the default space, and its parameters."""
    from sweeps.engine.domains import values_of
    from sweeps.engine.spaces import AXES

    from xfer.choices import default_parameters
    from xfer.recipe import CHOICE_TABLES

    usual = values_of(AXES[kind])
    return {name: (name in usual, list(default_parameters(entry))) for name, entry in CHOICE_TABLES[kind].items()}


def test_the_help_lists_exactly_the_strategies_there_are_with_their_parameters(help_text: str) -> None:
    text = re.search(r"searched with --vary\. - (.*?) \(default: ", help_text)
    assert text
    groups = [group.partition(": ")[2] for group in text[1].split(" - ")]
    assert len(groups) == 5
    found: dict[str, tuple[bool, list[str]]] = {}
    for group in groups:
        entries = listed(group)
        assert entries.keys() & found.keys() == set()
        found |= entries
    assert found == there_are("strategy")


def test_the_help_names_exactly_the_samplers_there_are(help_text: str) -> None:
    from sweeps.engine.samplers import SAMPLERS

    assert said(help_text, "Who proposes recipes after the known good ones:", ".") == set(SAMPLERS)


def test_the_help_names_exactly_the_objectives_there_are(help_text: str) -> None:
    from xfer.objectives import OBJECTIVES

    alone = said(help_text, "What recipes are searched for, ranked and stopped by, on the validation part:", ".")
    assert alone | said(help_text, "With a second one, as in", ", what") == set(OBJECTIVES)
    assert alone == set(OBJECTIVES) - {"seconds"}


def test_the_help_names_exactly_the_schedulers_there_are(help_text: str) -> None:
    from sweeps.engine.schedulers import SCHEDULERS

    assert said(help_text, "Who stops those that lag behind:", ".") == set(SCHEDULERS)


def test_the_help_names_exactly_the_axes_there_are(help_text: str) -> None:
    from sweeps.engine.spaces import AXES

    from xfer.recipe import CHOICE_TABLES

    numbers = said(help_text, "Axes of numbers:", ".")
    text = re.search(r"Axes of names, those with \* unless given: - (.*?) What stands in brackets", help_text)
    assert text
    kinds = dict(line.split(": ", 1) for line in text[1].split(" - "))
    assert set(kinds) == set(CHOICE_TABLES)
    assert numbers == {*AXES, "learning_rate"} - set(CHOICE_TABLES)
    assert kinds.pop("strategy") == "as in --strategies"
    for kind, names in kinds.items():
        assert listed(names) == there_are(kind), kind


def test_every_example_in_the_help_of_vary_is_taken(help_text: str) -> None:
    from sweeps.engine.edits import space_for

    text = re.search(r"--vary .*?once for each axis: (.*?) Axes of numbers:", help_text)
    assert text
    examples = re.findall(r"([a-z_]+)=([^=]*?)(?:, (?=[a-z_]+=)|\.$)", text[1].replace("sgd, ranger", "sgd,ranger"))
    assert len(examples) == 5
    for axis, values in examples:
        space_for(["a"], 8, edits={axis: values})


def test_the_help_says_the_defaults(help_text: str) -> None:
    for flag, default in (("--storage PLACE", "runs"), ("--reports PATH", "reports"), ("--trials INT", "24")):
        assert re.search(rf"{flag} [^(]*\(default: {default}\)", help_text)


@pytest.mark.parametrize("page", ["folder", "quickstart", "stanford_cars"])
def test_the_help_is_there_before_torch_ray_and_the_rest_are_imported(page: str) -> None:
    shown = python("-X", "importtime", "-m", f"sweeps.{page}", "--help")
    assert shown.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
    assert "tyro" in imported
    assert imported & {"torch", "ray", "optuna", "mlflow", "timm", "pandas", "sklearn", "scipy"} == set()
