"""Commands, files and code that the README and docs/python.md show exist and work."""

import re
import shlex
from pathlib import Path

import pytest

from sweeps import folder as page
from sweeps.engine import options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = (ROOT / "docs" / "python.md").read_text()
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
    assert options.apply_options(plan, flags).data in ("DIR", "FILE.csv")


ALONE = [
    shlex.split(line.split("#")[0], comments=True)
    for line in (README + PYTHON).replace("\\\n", " ").splitlines()
    if line.startswith("    python -m xfer")
]


@pytest.mark.parametrize("command", ALONE, ids=" ".join)
def test_the_flags_of_every_xfer_command_are_known(command):
    from xfer.__main__ import COMMANDS, parser

    assert {given[3] for given in ALONE} == set(COMMANDS)
    assert parser().parse_args(command[3:]).command == command[3]


TREE = README[README.index("## Where things are") : README.index("Where to look first")]
POINTERS = README[README.index("Where to look first") : README.index("## More")]


def folders(package):
    """The packages below one top-level package, by their own name."""
    return {path.parent.name for path in (ROOT / package).rglob("__init__.py")} - {package}


@pytest.mark.parametrize("package", ["xfer", "sweeps"])
def test_the_tree_names_every_package(package):
    assert sorted(name for name in folders(package) if f"{name}/" not in TREE) == []


def test_every_file_and_folder_that_the_readme_names_exists():
    named = set(re.findall(r"`((?:xfer|sweeps|benchmarks|docs|tests)/[\w./]+)`", POINTERS))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", README))
    assert named
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_every_module_in_the_tree_exists():
    modules = {path.name for package in ("xfer", "sweeps") for path in (ROOT / package).rglob("*.py")}
    assert sorted(set(re.findall(r"\b(\w+\.py)\b", TREE)) - modules) == []


def test_the_readme_has_at_most_180_lines():
    assert len(README.splitlines()) <= 180


def test_the_python_example_trains_a_recipe(image_folder, weights, tmp_path, monkeypatch, capsys):
    code = PYTHON[PYTHON.index("```python") + len("```python") : PYTHON.rindex("```")]
    small = {  # numbers first, for a path may hold them too
        "128": "32",
        '"epochs": 6': '"epochs": 3',
        '"mobilenetv2_100"': '"test_efficientnet"',
        '"DIR"': repr(str(image_folder)),
        '"mobilenetv2.safetensors"': repr(str(weights)),
    }
    for original, replacement in small.items():
        assert original in code
        code = code.replace(original, replacement)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2", "3"]
