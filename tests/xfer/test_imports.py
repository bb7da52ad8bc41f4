"""xfer needs only torch and timm: no scheduler, tracker or tables, and optional packages are imported on demand."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import xfer

FORBIDDEN = {"ray", "optuna", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "tyro", "rich", "sweeps"}
OPTIONAL = {"pytorch_metric_learning", "datasets"}
"""Packages missing from a plain installation: only imported where they are needed."""
ALL = [module.name for module in pkgutil.walk_packages(xfer.__path__, "xfer.") if not module.name.endswith("__main__")]


def imported_by(code):
    """Top-level packages that a fresh interpreter has loaded after running some code."""
    code = f"{code}; import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_importing_xfer_and_building_the_defaults_loads_no_engine_and_no_optional_package():
    build_defaults = (
        "from xfer.recipe import CHOICE_TABLES, DEFAULT_CHOICES; "
        "[CHOICE_TABLES[kind][name]() for kind, name in DEFAULT_CHOICES.items()]"
    )
    packages = imported_by(f"import {', '.join(ALL)}; {build_defaults}")
    assert {"torch", "timm", "xfer"} <= packages
    assert not packages & (FORBIDDEN | OPTIONAL)


@pytest.mark.parametrize("modules", ["xfer", "xfer.records, xfer.choices, xfer.objectives"])
def test_modules_for_reports_do_not_load_torch(modules):
    assert not imported_by(f"import {modules}") & {"torch", "torchvision", "timm", *FORBIDDEN, *OPTIONAL}
