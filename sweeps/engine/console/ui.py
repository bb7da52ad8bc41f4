"""The MLflow UI for a storage folder, reachable only from this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sweeps.engine.storage.store import Store, list_sweeps
from sweeps.engine.tracking import resolve_tracking_uri, sweep_pages
from sweeps.engine.tracking.addresses import sqlite_path
from sweeps.engine.tracking.server import LOCALHOST, start_server, wait_until_ready
from sweeps.engine.tracking.view import AS_MODEL_TRAINING
from xfer.storage.local_cache import local_path
from xfer.storage.redaction import redact

PORTS_TO_TRY = 100
"""Number of consecutive ports tried to find a free one."""


def serve_ui(storage: Path, tracking_uri: str = "", port: int = 5000, store: Store | None = None) -> int:
    """Run the MLflow UI on 127.0.0.1 until Ctrl-C or SIGTERM.

    If the sweeps were tracked by an MLflow server, print addresses of its own UI instead.

    Args:
        storage: folder with the sweeps.
        tracking_uri: MLflow address, if the sweeps were started with --tracking-uri.
        port: the first port to try; if it is taken, the next free one is used.
        store: the sweep whose pages are printed.

    Returns:
        The exit status: 0 on success, 1 if MLflow ended by itself, 2 for wrong input.
    """
    uri = resolve_tracking_uri(tracking_uri, storage)
    if uri.startswith(("http://", "https://")):
        print(f"These sweeps are tracked by an MLflow server with a UI of its own: {redact(uri)}")
        _print_pages(uri.rstrip("/"), store)
        return 0
    if (database := sqlite_path(uri)) and not database.exists():
        print(_missing_database_message(storage, database), file=sys.stderr)
        return 2
    try:
        free = _free_port(port)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if free != port:
        print(f"Port {port} is in use; using port {free}.")
    print("Starting the MLflow UI ...", flush=True)
    with tempfile.TemporaryFile() as log, _interrupt_on_signals():
        folder = local_path(storage)
        artifacts = {"MLFLOW_DEFAULT_ARTIFACT_ROOT": (folder.resolve() / "mlartifacts").as_uri()}
        server = start_server(uri, free, folder, log, ["--no-serve-artifacts"], settings=artifacts)
        try:
            if wait_until_ready(server, free):
                print("MLflow UI (stop with Ctrl-C)")
                _print_pages(f"http://{LOCALHOST}:{free}", store)
                server.wait()
        except KeyboardInterrupt:
            print("\nMLflow UI stopped.")
            return 0
        finally:
            _stop(server)
        log.seek(0)
        last_output = redact(log.read()[-4000:].decode(errors="replace"))
        print(f"The MLflow UI ended unexpectedly with status {server.returncode}:\n{last_output}", file=sys.stderr)
        return 1


def _missing_database_message(storage: Path, database: Path) -> str:
    names = [store.name for store in list_sweeps(storage)] if storage.exists() else []
    if names:
        command = f"python -m sweeps sync {names[-1]} --storage {storage}"
        return f"{storage} holds {len(names)} sweeps, but {database} is missing. To create it, run: {command}"
    return (
        f"There are no sweeps in {storage} yet. Start one with\n"
        f"    make quickstart\n"
        f"    python -m sweeps.folder --data DIR    for your own images, DIR/<class>/*.jpg\n"
        f"or pass the folder of your sweeps as --storage."
    )


def _free_port(first: int) -> int:
    """Find a free port.

    Args:
        first: the lowest port to try.

    Raises:
        ValueError: the number is not that of a port, or none of the next `PORTS_TO_TRY` ports is free.
    """
    if not 0 < first < 2**16:
        raise ValueError(f"--port {first}: must be between 1 and 65535")
    for port in range(first, min(first + PORTS_TO_TRY, 2**16)):
        with socket.socket() as probe, suppress(OSError):
            # Without this option, a port counts as taken for a minute after use.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOCALHOST, port))
            return port
    raise ValueError(f"no free port found from {first} on: choose another with --port, between 1024 and 65535")


def _print_pages(address: str, store: Store | None) -> None:
    """Print where a server shows a sweep; the list of its experiments if it has no such sweep."""
    plan = None if store is None else store.plan()
    pages = {} if plan is None else sweep_pages(address, plan)
    for title, page in pages.items():
        print(f"{title + ':':<20} {redact(page)}")
    if not pages:
        print(f"all sweeps: {redact(address)}/#/experiments?{AS_MODEL_TRAINING}")
    sys.stdout.flush()


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and its child processes."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signum)
        with suppress(subprocess.TimeoutExpired):
            server.wait(5)


@contextmanager
def _interrupt_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGINT, so that the server is stopped as well.

    SIGINT is handled explicitly because shells make background processes ignore it.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = {signum: signal.signal(signum, interrupt) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
