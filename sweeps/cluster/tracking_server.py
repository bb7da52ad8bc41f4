"""MLflow's server on the head of a cluster, reached through a tunnel only."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

from sweeps.engine.tracking import redact_password, server
from sweeps.engine.tracking.server import LOCALHOST, is_listening

PORT = 5000


def start_tracking_server(
    artifacts: str, folder: Path, backend: str = "", port: int = PORT
) -> subprocess.Popen[bytes] | None:
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
    if is_listening(port):
        print(f"MLflow answers already at http://{LOCALHOST}:{port}")
        return None
    if backend.startswith("postgresql") and not importlib.util.find_spec("psycopg2"):
        raise ValueError("for Postgres MLflow needs psycopg2: add `pip install psycopg2-binary` to head_setup_commands")
    folder.mkdir(parents=True, exist_ok=True)
    uri = backend or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    flags, artifacts_at = ["--serve-artifacts"], {"MLFLOW_ARTIFACTS_DESTINATION": artifacts}
    log = folder / "mlflow.log"
    with log.open("ab") as said:  # its process group outlives the SSH connection that started it
        process = server.start_server(
            uri, port, folder, said, flags, workers=2 if backend else 1, settings=artifacts_at
        )
    if server.wait_until_ready(process, port):
        print(f"MLflow is at http://{LOCALHOST}:{port}, its log is {log}", flush=True)
        return process
    last_words = redact_password(log.read_text(errors="replace")[-2000:])
    raise ValueError(f"MLflow did not answer at http://{LOCALHOST}:{port}. Its last words, from {log}:\n{last_words}")
