"""Starts MLflow's server on the head of a cluster, where it is reachable only through an SSH tunnel."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from sweeps.engine.tracking import server
from sweeps.engine.tracking.addresses import sqlite_uri
from sweeps.engine.tracking.server import LOCALHOST, is_listening
from xfer.storage.redaction import redact

PORT = 5000
"""Port of the server, on the head and on the user's machine."""


def start_tracking_server(
    artifacts: str, folder: Path, backend: str = "", port: int = PORT
) -> subprocess.Popen[bytes] | None:
    """Start the server in the background and print its address, unless a server already answers on the port.

    SQLite is enough: if the database is lost with the head, `python -m sweeps sync` rebuilds it from the sweeps'
    storage. Postgres is for many concurrent sweeps, and for a history that outlives the cluster.

    Args:
        artifacts: URI where artifacts are stored.
        folder: folder of the database and the log; created if it does not exist.
        backend: URI of the database, without a password: libpq reads ~/.pgpass. Defaults to SQLite in the folder.
        port: port to listen on, on 127.0.0.1 only.

    Returns:
        The server's process, or None if a server answered already.

    Raises:
        ValueError: the server exited or did not answer within two minutes, or the database's driver is missing.
    """
    if is_listening(port):
        print(f"MLflow is already running at http://{LOCALHOST}:{port}")
        return None
    if backend.startswith("postgresql") and not importlib.util.find_spec("psycopg2"):
        raise ValueError("MLflow needs psycopg2 for Postgres: add `pip install psycopg2-binary` to head_setup_commands")
    folder.mkdir(parents=True, exist_ok=True)
    uri = backend or sqlite_uri(folder.resolve() / "mlflow.db")
    flags, settings = ["--serve-artifacts"], {"MLFLOW_ARTIFACTS_DESTINATION": artifacts}
    log = folder / "mlflow.log"
    with log.open("ab") as output:  # its process group outlives the SSH connection that started it
        process = server.start_server(uri, port, folder, output, flags, workers=2 if backend else 1, settings=settings)
    if server.wait_until_ready(process, port):
        print(f"MLflow is running at http://{LOCALHOST}:{port}, logging to {log}", flush=True)
        return process
    log_tail = redact(log.read_text(encoding="utf-8", errors="replace")[-2000:])
    raise ValueError(f"MLflow did not answer at http://{LOCALHOST}:{port}. The end of its log, {log}:\n{log_tail}")
