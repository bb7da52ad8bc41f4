"""Text input and output in locales whose encoding is not UTF-8."""

from __future__ import annotations

import io
import os
import sys


def use_utf8() -> None:
    """Restart a program in Python's UTF-8 mode if the locale decodes file names in another encoding.

    Otherwise file and class names with other characters than ASCII could be neither written nor printed. The mode has
    to be set when Python starts; worker processes inherit it. Call this once, at the start of a command.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"})


def escape_unencodable() -> None:
    """Make stdout and stderr escape characters that their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def escape_undecoded(name: str) -> str:
    r"""Return a name with the bytes that are not UTF-8 as \xNN; Python reads them as lone surrogates.

    >>> print(escape_undecoded("caf\udce9.jpg"))
    caf\xe9.jpg
    """
    encoded = name.encode("utf-8", "backslashreplace").decode()
    return name if encoded == name else encoded.replace("\\udc", "\\x")
