"""The README says what is there, and what it says works."""

import re
import shlex
from pathlib import Path

import pytest

from sweeps import folder as page
from sweeps.engine import options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line.split("#")[0].strip(), comments=True)
    for line in README.splitlines()
    if line.startswith("    python -m sweeps.folder") and "--help" not in line
]


def test_the_readme_shows_commands():
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_flags_of_every_command_are_known_and_make_a_plan(command):
    plan, flags = options.parse_args(page.plan, command[3:])
    assert options.apply_options(plan, flags).data == "DIR"


ALONE = [
    shlex.split(line.split("#")[0], comments=True)
    for line in README.replace("\\\n", " ").splitlines()
    if line.startswith("    python -m xfer")
]


@pytest.mark.parametrize("command", ALONE, ids=" ".join)
def test_the_flags_of_every_command_without_a_sweep_are_known(command):
    from xfer.__main__ import COMMANDS, parser

    assert {given[3] for given in ALONE} == set(COMMANDS)
    assert parser().parse_args(command[3:]).command == command[3]


TREE = README[README.index("## The house") : README.index("A sweep writes everything")]


@pytest.mark.parametrize("package", ["xfer", "sweeps", "benchmarks"])
def test_the_tree_names_every_module(package):
    modules = {path.name for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}
    assert sorted(name for name in modules if name not in TREE) == []


def test_the_tree_names_nothing_that_is_not_there():
    there = {path.name for package in ("xfer", "sweeps", "benchmarks") for path in (ROOT / package).rglob("*.py")}
    assert sorted(set(re.findall(r"\b(\w+\.py)\b", TREE)) - there) == []


def test_a_recipe_trains_as_the_readme_shows(image_folder, weights, tmp_path, monkeypatch, capsys):
    code = README[README.index("```python") + len("```python") : README.rindex("```")]
    small = {  # numbers first, for a path may hold them too
        "128": "32",
        '"epochs": 6': '"epochs": 3',
        '"mobilenetv2_100"': '"test_efficientnet"',
        '"DIR"': repr(str(image_folder)),
        '"mobilenetv2.safetensors"': repr(str(weights)),
    }
    for said, tried in small.items():
        assert said in code
        code = code.replace(said, tried)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2", "3"]
