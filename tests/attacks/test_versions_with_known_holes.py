"""Attack 10: no version of a dependency with a known hole can be installed, nor is it installed here."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.sweep_commands import ROOT

FLOORS = {
    "ray": "2.59",  # the first that asks for a token when it is started on one machine; holes before 2.54
    "mlflow": "3.11",
    "torch": "2.10",
    "pillow": "12.3",
    "jinja2": "3.1.6",
}
"""The oldest version of each package without a known hole."""

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in texts
]


@pytest.mark.parametrize("name", FLOORS)
def test_every_requirement_of_a_package_excludes_the_versions_before_its_floor(name: str) -> None:
    requirements = [requirement for requirement in REQUIREMENTS if requirement.name == name]
    assert requirements
    for requirement in requirements:
        [floor] = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        assert floor >= Version(FLOORS[name]), f"{requirement} admits versions before {FLOORS[name]}"


@pytest.mark.parametrize("name", FLOORS)
def test_the_pinned_and_the_installed_version_are_at_least_the_floor(name: str) -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    [pinned] = re.findall(rf"^{name}==(\S+)$", constraints, re.MULTILINE | re.IGNORECASE)
    assert Version(pinned) >= Version(FLOORS[name])
    assert Version(metadata.version(name)) >= Version(FLOORS[name])
