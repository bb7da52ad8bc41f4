"""Commands of `python -m xfer` as a person gives them, but in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from xfer.__main__ import main


@dataclass(frozen=True)
class CompletedCommand:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., CompletedCommand]


@dataclass(frozen=True)
class Flags:
    """The flags that say which images and which network, for the tiny ones that the tests share."""

    images: Path
    weights: Path
    storage: Path

    def __call__(self, *more: object) -> list[str]:
        named = ["--data", self.images, "--weights", self.weights, "--storage", self.storage]
        return [*map(str, named), "--backbone", "test_efficientnet", "--image-size", "32", *map(str, more)]


def make_command_runner(capsys: pytest.CaptureFixture[str]) -> Command:
    """Gives a command line and says how that ended."""

    def give(*arguments: object) -> CompletedCommand:
        capsys.readouterr()
        try:
            status = main([str(each) for each in arguments])
        except SystemExit as ended:  # argparse's own way out
            status = int(ended.code or 0)
        said = capsys.readouterr()
        return CompletedCommand(status, said.out, said.err)

    return give
