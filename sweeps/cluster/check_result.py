"""The result of one preflight check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CheckResult:
    """The result of one preflight check; `note` marks something that could not be verified and does not stop `up`."""

    name: str
    status: Literal["ok", "missing", "note"]
    message: str
    """What was found and, if something is missing, what to do about it."""
