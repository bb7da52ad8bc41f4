"""Attacks 3, 4 and 8: nothing that is read runs code, no archive is unpacked, and YAML is loaded safely.

The rule is checked in the source: calls that can run what they read are listed here with the reason why each is safe.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.sweep_commands import ROOT

FORBIDDEN = {
    "pickle.load": "unpickling runs code",
    "pickle.loads": "unpickling runs code",
    "cloudpickle.loads": "unpickling runs code",
    "joblib.load": "unpickling runs code",
    "shelve.open": "unpickling runs code",
    "marshal.loads": "unpickling runs code",
    "yaml.load": "creates any object",
    "yaml.unsafe_load": "creates any object",
    "eval": "runs code",
    "exec": "runs code",
    "os.system": "runs a shell",
    "tarfile.open": "names in an archive may lead out of the folder",
    "shutil.unpack_archive": "names in an archive may lead out of the folder",
}
ALLOWED = {
    (
        "sweeps/engine/trials/ray_tune.py",
        "pickle.loads",
    ): "a file that Ray Tune has just written in the driver's folder",
    ("xfer/distributed/launcher.py", "pickle.loads"): "sent by the parent process through a pipe of its own",
}
FILES = sorted(path for package in ("xfer", "sweeps") for path in (ROOT / package).rglob("*.py"))


def dotted_name(node: ast.expr) -> str:
    """The name of a called function as it is written, such as `torch.load`."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [(dotted_name(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(each.value) for each in call.keywords if each.arg == name), None)


@pytest.fixture(scope="module")
def all_calls() -> list[tuple[str, str, ast.Call]]:
    return [(file.relative_to(ROOT).as_posix(), name, call) for file in FILES for name, call in calls(file)]


def test_no_call_can_run_what_it_reads(all_calls: list[tuple[str, str, ast.Call]]) -> None:
    found = {(file, name) for file, name, _ in all_calls if name in FORBIDDEN}
    assert {place: FORBIDDEN[place[1]] for place in found - ALLOWED.keys()} == {}
    assert found == ALLOWED.keys(), "an exception that is not needed any more is removed"


def test_torch_and_numpy_load_without_pickle(all_calls: list[tuple[str, str, ast.Call]]) -> None:
    loads = [(file, call) for file, name, call in all_calls if name == "torch.load"]
    assert loads
    assert [file for file, call in loads if keyword(call, "weights_only") is not True] == []
    arrays = [(file, call) for file, name, call in all_calls if name in ("np.load", "numpy.load")]
    assert arrays
    assert [file for file, call in arrays if keyword(call, "allow_pickle") not in (False, None)] == []


def test_no_member_of_an_archive_is_written_to_disk(all_calls: list[tuple[str, str, ast.Call]]) -> None:
    extracting = {"extract", "extractall", "unpack_archive"}
    assert [(file, name) for file, name, _ in all_calls if name.rpartition(".")[2] in extracting] == []
