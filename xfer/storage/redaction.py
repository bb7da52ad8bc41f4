"""Redaction: removes passwords and tokens from everything that is written or shown.

Stored objects, logs, reports and error messages pass through here. Passwords reach them in the address of a tracking
server, on the command line, and in the messages of libraries that quote either.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from typing import Any, TextIO

HIDDEN = "***"
"""What replaces a secret without a place of its own."""

MIN_SECRET_LENGTH = 8
"""Minimum length of a secret from the environment; shorter values are common words."""

_USER_INFO = re.compile(r"""://(?:[^\s"<>/@:]*:[^\s"<>]*@|[^\s"<>/@]+@)""")
"""The part `user:password@` of an address. A password may contain any character but white space, quotes and brackets,
because people forget to encode them."""

_QUERY = re.compile(
    r"""(?i)([?&](?:[\w-]*(?:token|password|secret|signature|credential|api[_-]?key)|sig|auth)=)[^\s&"'<>#]+"""
)
"""Secret parameters of an address, such as those of signed links to object stores."""

_HEADER = re.compile(r"(?i)\b(authorization: *|bearer +|basic +(?=[\w+/-]{12,}=*))(?!bearer|basic)[\w.~+/-]{8,}=*")
"""Credentials in a header of an HTTP request."""

_SECRET_VARIABLE = re.compile(r"(^|_)(PASSWORD|PASSWD|TOKEN|SECRET|SECRET_KEY|ACCESS_KEY|API_KEY|ACCESS_KEY_ID)$")
"""Names of environment variables that hold a secret."""


def redact(text: str) -> str:
    """Return a text without passwords and tokens.

    >>> redact("no answer from https://me:secret@host/mlflow")
    'no answer from https://host/mlflow'
    >>> redact("GET https://host/weights?name=a&X-Amz-Signature=3f9c")
    'GET https://host/weights?name=a&X-Amz-Signature=***'
    """
    for secret in _environment_secrets():
        text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _QUERY.sub(rf"\g<1>{HIDDEN}", _USER_INFO.sub("://", text))
    return _HEADER.sub(rf"\g<1>{HIDDEN}", text)


def redact_all(value: Any) -> Any:
    """Return plain data with every text in it redacted, keys included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key) if isinstance(key, str) else key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value


def _environment_secrets() -> list[str]:
    """Return the values of environment variables that hold a secret, longest first."""
    # Another thread may remove a variable meanwhile, as the start of Ray does.
    values = {
        value
        for name in list(os.environ)
        if (value := os.environ.get(name, ""))
        and len(value) >= MIN_SECRET_LENGTH
        and not value.startswith("/")
        and _SECRET_VARIABLE.search(name)
    }
    return sorted(values, key=len, reverse=True)


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without passwords and tokens."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the redacted text of a record."""
        return redact(super().format(record))


class RedactingStream:
    """A text stream that redacts what is written to it, and drops what cannot be written: a log ends no computation.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the redacted text; return the length of the original."""
        with contextlib.suppress(OSError):  # the disk is full
            self._stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
