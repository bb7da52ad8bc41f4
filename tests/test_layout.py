"""The layout of the code: short folders, and imports without cycles."""

from __future__ import annotations

import graphlib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]


def test_no_module_imports_itself_through_others() -> None:
    graph = grimp.build_graph("xfer", "sweeps", "benchmarks", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize(("folder", "most"), [("xfer", 14), ("sweeps/engine", 10)])
def test_a_folder_holds_few_modules(folder: str, most: int) -> None:
    """More belong into a package of their own."""
    assert len(list((ROOT / folder).glob("*.py"))) <= most
