"""xfer trains where there is only torch and timm: no scheduler, no tracker, no tables."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = {"ray", "optuna", "mlflow", "pandas", "scipy", "sklearn", "matplotlib", "tyro", "rich", "sweeps"}


@pytest.mark.parametrize("modules", ["xfer.run, xfer.export", "xfer.records"])
def test_importing_xfer_imports_no_engine(modules):
    code = f"import {modules}, sys; print(*{FORBIDDEN} & set(sys.modules), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.split() == [str("run" in modules)]
