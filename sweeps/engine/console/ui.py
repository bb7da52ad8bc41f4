"""The MLflow UI over a storage folder, for this machine alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import Request, urlopen

from sweeps.engine.storage.store import list_sweeps
from sweeps.engine.tracking import redact_password, resolve_tracking_uri
from sweeps.engine.tracking.server import LOCALHOST, start_server, wait_until_ready
from xfer.storage.local_cache import local_path

PORTS_TO_TRY = 100


def serve_ui(storage: Path, tracking_uri: str | None = None, port: int = 5000) -> int:
    """Run the MLflow UI on 127.0.0.1 until Ctrl-C, over what the sweeps in `storage` have tracked; the exit status.

    Where `port` is taken the next free one is used. Where the sweeps went to a server of its own (`tracking_uri` is
    `http...`) that server has the UI, and its address is printed.
    """
    uri = resolve_tracking_uri(tracking_uri or "", storage)
    if uri.startswith(("http://", "https://")):
        print(f"These sweeps are tracked by a server, which shows them itself: {redact_password(uri)}")
        return 0
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.exists():
        print(_nothing_there(storage, database), file=sys.stderr)
        return 2
    try:
        free = _free_port(port)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if free != port:
        print(f"Port {port} is taken by another program, so this is port {free}.")
    print("The MLflow UI is starting ...", flush=True)
    with tempfile.TemporaryFile() as said, _ended_by_signals():
        here = local_path(storage)
        artifacts = {"MLFLOW_DEFAULT_ARTIFACT_ROOT": (here.resolve() / "mlartifacts").as_uri()}
        server = start_server(uri, free, here, said, ["--no-serve-artifacts"], settings=artifacts)
        try:
            if wait_until_ready(server, free):
                print(f"The MLflow UI, until Ctrl-C: {_front_page(free)}")
                print("Once in it, choose Model training at the top left; your browser remembers that.", flush=True)
                server.wait()
        except KeyboardInterrupt:
            print("\nThe MLflow UI has ended.")
            return 0
        finally:
            _stop(server)
        said.seek(0)
        last_words = redact_password(said.read()[-4000:].decode(errors="replace"))
        print(f"The MLflow UI ended by itself, with status {server.returncode}:\n{last_words}", file=sys.stderr)
        return 1


def _nothing_there(storage: Path, database: Path) -> str:
    names = [store.name for store in list_sweeps(storage)] if storage.exists() else []
    if names:
        command = f"python -m sweeps sync {names[-1]} --storage {storage}"
        return f"{storage} holds {len(names)} sweeps, but {database} is missing. To write it: {command}"
    return (
        f"Nothing has been tracked in {storage} yet. Start with\n"
        f"    make quickstart\n"
        f"    python -m sweeps.folder --data DIR    on your own images, DIR/<class>/*.jpg\n"
        f"or name the folder that holds your sweeps with --storage."
    )


def _free_port(first: int) -> int:
    """The first port from `first` on that nobody listens on."""
    for port in range(first, min(first + PORTS_TO_TRY, 2**16)):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # or a port counts as taken a minute longer
            probe.bind((LOCALHOST, port))
            return port
    raise ValueError(f"no port from {first} on is free: choose another with --port, between 1024 and 65535")


def _front_page(port: int) -> str:
    """The address of the newest experiment's runs.

    MLflow would begin with a page about language models that knows nothing of ours; `workflowType` leads past it.
    """
    address = f"http://{LOCALHOST}:{port}"
    question = {"max_results": 1, "filter": "name != 'Default'", "order_by": ["creation_time DESC"]}
    request = Request(
        f"{address}/api/2.0/mlflow/experiments/search",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    page = "experiments"
    with suppress(OSError, ValueError), urlopen(request, timeout=10) as answer:
        for experiment in json.load(answer).get("experiments", []):
            page = f"experiments/{experiment['experiment_id']}/runs"
    return f"{address}/#/{page}?workflowType=machine_learning"


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and everything that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            server.wait(5)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """While this lasts SIGTERM ends us as Ctrl-C does, the server included.

    Ctrl-C is listened to even where we were started in the background, which a shell tells programs to ignore it in.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
