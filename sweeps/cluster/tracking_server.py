"""MLflow's server on the head of a cluster, reached through a tunnel only."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

from sweeps.engine.tracking import without_password
from sweeps.engine.ui import HOST, SECONDS_TO_START, hardened

PORT = 5000


def start(artifacts: str, folder: Path, backend: str = "", port: int = PORT) -> subprocess.Popen[bytes] | None:
    """Start the server in the background and say where it is; None where one answers already.

    The database is rebuilt from the sweeps' storage with `python -m sweeps sync` where it is lost with the head, so
    SQLite will do; Postgres is for many sweeps at a time, and for a history that outlives the cluster.

    Args:
        artifacts: address that files are kept at.
        folder: for the database and the log; made where it is missing.
        backend: address of a database, without a password: libpq reads ~/.pgpass. SQLite in the folder where empty.
        port: where to listen, on 127.0.0.1 alone.

    Raises:
        ValueError: it ended, or did not answer in two minutes; or the database's driver is missing.
    """
    if answers(port):
        print(f"MLflow answers already at http://{HOST}:{port}")
        return None
    if backend.startswith("postgresql") and not importlib.util.find_spec("psycopg2"):
        raise ValueError("for Postgres MLflow needs psycopg2: add `pip install psycopg2-binary` to head_setup_commands")
    folder.mkdir(parents=True, exist_ok=True)
    uri = backend or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= hardened(uri, port) | {"MLFLOW_ARTIFACTS_DESTINATION": artifacts}
    # One worker where the database is one file.
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "2" if backend else "1", "--serve-artifacts", "--uvicorn-opts", "--log-level warning"]
    log = folder / "mlflow.log"
    with log.open("ab") as said:
        # A session of its own: it outlives the SSH connection that started it.
        server = subprocess.Popen(
            command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    until = time.monotonic() + SECONDS_TO_START
    while server.poll() is None and time.monotonic() < until:
        if answers(port):
            print(f"MLflow is at http://{HOST}:{port}, its log is {log}", flush=True)
            return server
        time.sleep(0.5)
    last_words = without_password(log.read_text(errors="replace")[-2000:])
    raise ValueError(f"MLflow did not answer at http://{HOST}:{port}. Its last words, from {log}:\n{last_words}")


def answers(port: int = PORT) -> bool:
    """Does a server answer there?"""
    with suppress(OSError), urlopen(f"http://{HOST}:{port}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False
