"""Redirect the output of libraries to a log file, so that the screen shows only our own lines."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console

from xfer.storage.redaction import RedactingFormatter, RedactingStream

PLAIN_CONSOLE_WIDTH = 120
"""Line width in columns if the output is not a terminal."""


@contextlib.contextmanager
def redirect_output(path: Path) -> Iterator[Console]:
    """Redirect everything that this process and its children print to `path`.

    File descriptors are redirected, so C++ code and processes started in the meantime are included. Log records of
    level INFO and above go to the same file. Passwords and tokens are removed from what Python writes.

    Args:
        path: the log file, which is appended to; its folder is created if necessary.

    Yields:
        A console on the original standard output.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = os.dup(1), os.dup(2)
    root = logging.getLogger()
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    encoding = sys.stdout.encoding or "utf-8"
    with (
        path.open("ab") as file,
        os.fdopen(out, "w", buffering=1, encoding=encoding, errors="backslashreplace", closefd=False) as screen,
    ):
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            with (
                contextlib.redirect_stdout(cast(TextIO, RedactingStream(sys.stdout))),
                contextlib.redirect_stderr(cast(TextIO, RedactingStream(sys.stderr))),
            ):
                yield Console(file=screen, width=None if screen.isatty() else PLAIN_CONSOLE_WIDTH)
        finally:
            root.removeHandler(handler)
            for flush in (sys.stdout.flush, sys.stderr.flush, handler.close):
                with contextlib.suppress(OSError):  # the disk is full, and what to do about it must reach the screen
                    flush()
            os.dup2(out, 1)
            os.dup2(err, 2)
    os.close(out)
    os.close(err)
