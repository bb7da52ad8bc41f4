"""Provenance: the command, commit, package versions and machine behind a result."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from xfer.storage.redaction import redact

RECORDED_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "ray", "optuna", "mlflow", "pandas", "scipy")
"""Packages whose versions are stored with a result."""


def provenance() -> dict[str, Any]:
    """Collect the command, commit, versions, machine and time as plain data."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "command": command_line(),
        "commit": _commit(Path(__file__).resolve().parents[3]),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in RECORDED_PACKAGES}},
        "machine": {"cpus": os.cpu_count(), "gpus": gpus, "platform": platform.platform()},
        "created": utc_now(),
    }


def describe_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two provenances and may change results: code, package versions and machine.

    >>> describe_changes({"commit": "a", "versions": {"torch": "2.9"}}, {"commit": "a", "versions": {"torch": "2.12"}})
    ['torch: 2.9 then, 2.12 now']
    """
    flat = [
        {"commit": each.get("commit"), **each.get("versions", {}), **each.get("machine", {})} for each in (then, now)
    ]
    names = dict.fromkeys([*flat[0], *flat[1]])
    return [
        f"{name}: {flat[0].get(name)} then, {flat[1].get(name)} now"
        for name in names
        if flat[0].get(name) != flat[1].get(name)
    ]


def utc_now() -> str:
    """Current time in UTC in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command that started this process, as it can be given again but for passwords, which it lacks."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {Path(sys.argv[0]).name}"
    return f"{program} {shlex.join(map(redact, sys.argv[1:]))}".strip()


def _commit(checkout: Path) -> str | None:
    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout), *args],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        changed = bool(git("status", "--porcelain", "--untracked-files=no"))
        return git("rev-parse", "--short=12", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
