"""Runs commands of `python -m xfer` in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from xfer.__main__ import main


@dataclass(frozen=True)
class CompletedCommand:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


Command = Callable[..., CompletedCommand]


@dataclass(frozen=True)
class Flags:
    """Flags that select images and network, with the tiny ones that the tests share."""

    images: Path
    weights: Path
    storage: Path

    def __call__(self, *more: object) -> list[str]:
        flags = ["--data", self.images, "--weights", self.weights, "--storage", self.storage]
        return [*map(str, flags), "--backbone", "test_efficientnet", "--image-size", "32", *map(str, more)]


def make_command_runner(capsys: pytest.CaptureFixture[str]) -> Command:
    """Returns a function that runs a command line."""

    def run(*arguments: object) -> CompletedCommand:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # raised by argparse
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return CompletedCommand(status, captured.out, captured.err)

    return run
