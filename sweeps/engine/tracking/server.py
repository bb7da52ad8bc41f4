"""MLflow's server as this project starts it: for this machine alone, and with the least that it can do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

LOCALHOST = "127.0.0.1"

STARTUP_TIMEOUT_SECONDS = 120.0
"""A cold start on a slow disk imports for a minute."""


def start_server(
    uri: str,
    port: int,
    folder: Path,
    said: IO[Any],
    flags: Sequence[str] = (),
    workers: int = 1,
    settings: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own, for `wait_until_ready` to wait for.

    Args:
        uri: its database.
        port: where to listen, on 127.0.0.1 alone.
        folder: where it runs.
        said: takes what it prints.
        flags: of `mlflow server`, besides.
        workers: its processes; one where the database is one file.
        settings: of its environment, besides.
    """
    # What the shell says about other MLflow servers is none of this one's business, and could open it to the network.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOCALHOST, "--port", str(port)]
    command += ["--workers", str(workers), *flags, "--uvicorn-opts", "--log-level warning"]
    return subprocess.Popen(
        command,
        env={**environment, **_hardened(uri, port), **(settings or {})},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        start_new_session=True,
    )


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server answers; False if it ended instead, or says nothing in two minutes."""
    until = time.monotonic() + STARTUP_TIMEOUT_SECONDS
    while server.poll() is None and time.monotonic() < until:
        if is_listening(port):
            return True
        time.sleep(0.2)
    return False


def is_listening(port: int) -> bool:
    """Does a server answer there?"""
    # Until a server listens on a port that the system hands out to clients, asking can be given that very port: the
    # question is then its own answer, and no HTTP.
    with suppress(OSError, HTTPException), urlopen(f"http://{LOCALHOST}:{port}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _hardened(uri: str, port: int) -> dict[str, str]:
    return {
        # By the environment, because anybody on the machine can read a password in the list of processes.
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # MLflow's own list also takes `10.*`, which a domain called 10.evil.com matches: DNS rebinding.
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{LOCALHOST}:{port},localhost:{port}",
        "MLFLOW_SERVER_X_FRAME_OPTIONS": "DENY",
    }
