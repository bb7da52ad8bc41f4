"""Quiet: what engines and libraries print goes to a log file; the screen belongs to us."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

PLAIN_CONSOLE_WIDTH = 120
"""Columns where the output is no terminal, whose width could be asked."""


@contextlib.contextmanager
def redirect_output(path: Path) -> Iterator[Console]:
    """Send everything that this process and its children print to `path`; yields a console on the real output.

    The redirection is of file descriptors, so that it also holds for C++ and for processes that are started meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = os.dup(1), os.dup(2)
    root = logging.getLogger()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    with path.open("ab") as file, os.fdopen(out, "w", buffering=1, closefd=False) as screen:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield Console(file=screen, width=None if screen.isatty() else PLAIN_CONSOLE_WIDTH)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            root.removeHandler(handler)
            handler.close()
            os.dup2(out, 1)
            os.dup2(err, 2)
    os.close(out)
    os.close(err)
