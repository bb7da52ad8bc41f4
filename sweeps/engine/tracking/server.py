"""Starts MLflow's server for this machine only, with optional features disabled."""

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
"""Seconds to wait for a server; on a slow disk the imports alone take a minute."""


def start_server(
    uri: str,
    port: int,
    folder: Path,
    output: IO[Any],
    flags: Sequence[str] = (),
    workers: int = 1,
    settings: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server in its own process group; `wait_until_ready` waits for it.

    Args:
        uri: URI of its database.
        port: port to listen on, on 127.0.0.1 only.
        folder: its working directory.
        output: file that receives its stdout and stderr.
        flags: additional flags of `mlflow server`.
        workers: number of worker processes; must be 1 for SQLite.
        settings: additional environment variables.
    """
    # MLflow variables of the shell are meant for other servers, and could expose this one to the network.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOCALHOST, "--port", str(port)]
    command += ["--workers", str(workers), *flags, "--uvicorn-opts", "--log-level warning"]
    return subprocess.Popen(
        command,
        env={**environment, **_security_settings(uri, port), **(settings or {})},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until a server answers; return False if it exits or does not answer within two minutes."""
    deadline = time.monotonic() + STARTUP_TIMEOUT_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        if is_listening(port):
            return True
        time.sleep(0.2)
    return False


def is_listening(port: int) -> bool:
    """Return whether an MLflow server answers on a port of this machine."""
    # If nothing listens on the port yet, the system may use the same port for our side of the connection, which then
    # connects to itself: it receives its own request, which is not valid HTTP.
    with suppress(OSError, HTTPException), urlopen(f"http://{LOCALHOST}:{port}/health", timeout=5) as response:
        return bool(response.status == 200)
    return False


def _security_settings(uri: str, port: int) -> dict[str, str]:
    return {
        # In the environment, because all users of the machine can read a password in the process list.
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # MLflow's default also allows `10.*`, which matches the domain 10.evil.com and so permits DNS rebinding.
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"{LOCALHOST}:{port},localhost:{port}",
        "MLFLOW_SERVER_X_FRAME_OPTIONS": "DENY",
    }
