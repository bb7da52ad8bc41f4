"""Addresses of MLflow: which ones are supported, how a database file is written as a URI, and whether a server answers.

SQLAlchemy percent-decodes the path of a database, so a path with `%`, `#` or `?` has to be encoded. For a URI that
begins with `sqlite:///`, MLflow would also create the folder of the encoded path; for `sqlite+pysqlite:///`, which
names the same driver, it does not.
"""

from __future__ import annotations

import os
import re
from http.client import HTTPException
from pathlib import Path
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import urlopen

from xfer.storage.redaction import redact

PLAIN_SCHEME, ENCODED_SCHEME = "sqlite:///", "sqlite+pysqlite:///"
"""Prefixes of the URI of an SQLite file: for a path as it is, and for a percent-encoded path."""

DATABASES = ("postgresql", "mysql", "mssql")
"""Schemes of database servers that MLflow supports, each possibly followed by +DRIVER."""

SQLITE_MAGIC = b"SQLite format 3\0"
"""First bytes of every SQLite file that is not empty."""

HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")
"""A server's address without its scheme."""

ANSWER_SECONDS = 3.0
"""Seconds to wait for a server's answer before a sweep starts without it."""


def sqlite_uri(path: Path) -> str:
    """Return the URI of an SQLite file for MLflow and SQLAlchemy, whatever characters its path contains.

    >>> sqlite_uri(Path("/data/my runs/mlflow.db")), sqlite_uri(Path("/data/runs#2/mlflow.db"))
    ('sqlite:////data/my runs/mlflow.db', 'sqlite+pysqlite:////data/runs%232/mlflow.db')
    """
    encoded = quote(str(path), safe="/ ")
    return f"{PLAIN_SCHEME if encoded == str(path) else ENCODED_SCHEME}{encoded}"


def sqlite_path(uri: str) -> Path | None:
    """Return the path of the SQLite file that a URI names; None for any other URI.

    >>> sqlite_path("sqlite+pysqlite:////data/runs%232/mlflow.db"), sqlite_path("http://host:5000")
    (PosixPath('/data/runs#2/mlflow.db'), None)
    """
    for scheme in (PLAIN_SCHEME, ENCODED_SCHEME):
        if uri.startswith(scheme):
            return Path(unquote(uri.removeprefix(scheme)))
    return None


def check_tracking_uri(uri: str, source: str) -> None:
    """Check that an address of MLflow is well-formed and of a supported kind, without connecting to it.

    Args:
        uri: the address.
        source: the flag or the environment variable that gave it, for the message.

    Raises:
        ValueError: it is not; the message says what to give instead.
    """
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    kind = scheme.partition("+")[0]
    if not uri.isprintable() or uri != uri.strip():
        problem = "contains spaces at its ends or invisible characters"
    elif scheme in ("http", "https"):
        problem = _server_problem(uri)
    elif kind == "sqlite":
        problem = _file_problem(sqlite_path(uri))
    elif kind in DATABASES:
        problem = _driver_problem(uri)
    elif scheme == "databricks" or uri == "databricks":
        problem = ""
    elif scheme == "file" or (scheme == "" and not HOST_AND_PORT.fullmatch(uri)):
        problem = "is not an address of MLflow, which no longer keeps runs in plain folders"
    elif HOST_AND_PORT.fullmatch(uri):
        problem = f"lacks its scheme: write http://{uri}"
    else:
        problem = f"has an unknown scheme, {scheme}:"
    if problem:
        remedy = f"Correct or unset {source}" if source.isupper() else "Without the flag, runs are kept in the storage"
        raise ValueError(
            f"{source} {redact(uri)!r} {problem}. MLflow's address is http://HOST:PORT, sqlite:///FILE or the "
            f"URI of a PostgreSQL, MySQL or SQL Server database. {remedy}"
        )


def answers(uri: str) -> bool:
    """Return whether an MLflow server answers within a few seconds; True for every address but http and https."""
    if not uri.startswith(("http://", "https://")):
        return True
    parts = urlsplit(uri)
    # urlopen does not understand user:password@, and the health of a server needs neither.
    host = parts.netloc.rpartition("@")[2]
    try:
        with urlopen(f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health", timeout=ANSWER_SECONDS):
            return True
    except HTTPError:  # for example, it asks for a password
        return True
    except URLError as error:
        return isinstance(error.reason, SSLError)  # MLflow has settings of its own for certificates
    except (OSError, HTTPException):
        return False


def _server_problem(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        return f"is malformed ({error})"
    if not parts.hostname:
        return "names no host"
    return "has port 0" if port == 0 else ""


def _file_problem(path: Path | None) -> str:
    if path is None or path in (Path(), Path(":memory:")):
        return "names no file"
    if path.is_dir():
        return "names a folder, not a file"
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        return f"cannot be created, because {parent} is a file"
    if not os.access(path if path.exists() else parent, os.W_OK):
        return "is not writable"
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(SQLITE_MAGIC)) != SQLITE_MAGIC:
                return "names a file that is no SQLite database"
    return ""


def _driver_problem(uri: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        return f"needs the package {error.name}, which is not installed"
    except (SQLAlchemyError, ValueError) as error:
        return f"is malformed ({error})"
    return ""
