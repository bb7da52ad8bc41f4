"""Addresses of MLflow: database files with any name, what is refused, and servers that do not answer."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text

from sweeps.engine.tracking import resolve_tracking_uri
from sweeps.engine.tracking.addresses import answers, check_tracking_uri, sqlite_path, sqlite_uri

NAMES = [
    "plain",
    "two words",
    "runs#2",
    "50%",
    "%20",
    "%2e%2e",
    "what?",
    "a?mode=ro&uri=true",
    "it's",
    'say "so"',
    "蜜蜂",
    "🐝",
    "e\u0301",
    "line\nbreak",
    "tab\t",
    "a+b=c&d;e,f",
    "user:secret@host",
    "[brackets]",
    "back\\slash",
    "$HOME",
    "~",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_database_is_opened_under_exactly_its_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    engine = create_engine(sqlite_uri(path), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    assert [folder.name for folder in tmp_path.iterdir()] == [name]
    assert sqlite_path(sqlite_uri(path)) == path


def test_an_ordinary_path_stands_in_its_uri_as_it_is() -> None:
    assert sqlite_uri(Path("/data/runs/mlflow.db")) == "sqlite:////data/runs/mlflow.db"


def test_other_addresses_name_no_file() -> None:
    assert sqlite_path("http://host:5000") is None
    assert sqlite_path("postgresql://host/mlflow") is None


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "localhost:5000": "lacks its scheme: write http://localhost:5000",
    "mlflow.example.org:80/prefix": "lacks its scheme: write http://mlflow.example.org:80/prefix",
    "mlruns": "no longer keeps runs in plain folders",
    "/data/mlruns": "no longer keeps runs in plain folders",
    "./mlruns": "no longer keeps runs in plain folders",
    "file:///data/mlruns": "no longer keeps runs in plain folders",
    "file:mlruns": "no longer keeps runs in plain folders",
    "ftp://host/mlflow": "has an unknown scheme, ftp:",
    "s3://bucket/mlflow": "has an unknown scheme, s3:",
    "htp://host:5000": "has an unknown scheme, htp:",
    "http://": "names no host",
    "http://:5000": "names no host",
    "http://host:port": "is malformed",
    "http://host:99999": "is malformed",
    "http://[::1": "is malformed",
    "http://host:0": "has port 0",
    " http://host:5000": "contains spaces at its ends or invisible characters",
    "http://host:5000\n": "contains spaces at its ends or invisible characters",
    "http://ho\x1bst:5000": "contains spaces at its ends or invisible characters",
    "sqlite://": "names no file",
    "sqlite:///": "names no file",
    "sqlite:///:memory:": "names no file",
    "sqlite:////": "names a folder, not a file",
    "mssql://host/mlflow": "needs the package",
}


@pytest.mark.parametrize("uri", REFUSED, ids=ascii)
def test_an_address_that_mlflow_cannot_use_is_refused_with_what_to_give_instead(uri: str) -> None:
    with pytest.raises(ValueError, match=r"^--tracking-uri ") as error:
        check_tracking_uri(uri, "--tracking-uri")
    assert REFUSED[uri] in str(error.value)
    assert "http://HOST:PORT" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "uri",
    ["http://host:5000", "https://user:secret@mlflow.example.org/prefix", "http://[::1]:5000", "sqlite:///runs.db"],
)
def test_other_addresses_are_accepted_without_a_connection(uri: str) -> None:
    check_tracking_uri(uri, "--tracking-uri")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are not runs", encoding="utf-8")
    with pytest.raises(ValueError, match="names a file that is no SQLite database"):
        check_tracking_uri(f"sqlite:///{tmp_path / 'notes.txt'}", "--tracking-uri")
    with pytest.raises(ValueError, match=r"cannot be created, because .*notes.txt is a file"):
        check_tracking_uri(f"sqlite:///{tmp_path / 'notes.txt' / 'mlflow.db'}", "--tracking-uri")


def test_a_refused_environment_variable_is_named_and_its_password_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://bob:secret@host/mlflow")
    with pytest.raises(ValueError, match="Correct or unset MLFLOW_TRACKING_URI") as error:
        resolve_tracking_uri("", tmp_path)
    assert "secret" not in str(error.value)
    assert resolve_tracking_uri("http://host:5000", tmp_path) == "http://host:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_tracking_uri("", tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"


# --- servers ----------------------------------------------------------------------------------------------------------


@contextmanager
def server(reply: bytes) -> Iterator[int]:
    """A server that answers every connection with the same bytes; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def test_a_server_that_answers_is_recognized_whether_or_not_it_wants_a_password() -> None:
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK") as port:
        assert answers(f"http://127.0.0.1:{port}")
        assert answers(f"http://bob:secret@127.0.0.1:{port}/prefix/")
    with server(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as port:
        assert answers(f"http://127.0.0.1:{port}")


def test_a_server_of_another_protocol_or_none_at_all_is_no_answer() -> None:
    with server(b"SSH-2.0-OpenSSH_9.2\r\n") as port:
        assert not answers(f"http://127.0.0.1:{port}")
    with server(b"") as port:
        assert not answers(f"http://127.0.0.1:{port}")
    assert not answers(f"http://127.0.0.1:{port}")  # closed by now
    assert not answers("http://no-such-host.invalid:5000")


def test_databases_are_not_asked(tmp_path: Path) -> None:
    assert answers(sqlite_uri(tmp_path / "mlflow.db"))
