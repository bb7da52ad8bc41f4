"""xfer trains where there is only torch and timm: no scheduler, no tracker, no tables, and what is optional waits."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import xfer

FORBIDDEN = {"ray", "optuna", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "tyro", "rich", "sweeps"}
OPTIONAL = {"pytorch_metric_learning", "datasets"}
"""What a plain installation is without: only asked for by what needs it."""
ALL = [module.name for module in pkgutil.walk_packages(xfer.__path__, "xfer.") if not module.name.endswith("__main__")]


def imported_by(code):
    """The packages that a fresh interpreter holds after running some code."""
    code = f"{code}; import sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return {name.partition(".")[0] for name in found.stdout.split()}


def test_importing_all_of_xfer_and_building_what_is_usual_imports_no_engine_and_nothing_optional():
    usual = "from xfer.recipe import CHOICE_TABLES, DEFAULT_CHOICES; [CHOICE_TABLES[kind][name]() for kind, name in DEFAULT_CHOICES.items()]"
    found = imported_by(f"import {', '.join(ALL)}; {usual}")
    assert {"torch", "timm", "xfer"} <= found
    assert not found & (FORBIDDEN | OPTIONAL)


@pytest.mark.parametrize("modules", ["xfer", "xfer.records, xfer.choices, xfer.objectives"])
def test_what_a_report_needs_does_without_torch(modules):
    assert not imported_by(f"import {modules}") & {"torch", "torchvision", "timm", *FORBIDDEN, *OPTIONAL}
