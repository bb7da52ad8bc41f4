"""A cluster from a file: python -m sweeps.cluster check FILE | up FILE | ui FILE; and, on its head, mlflow."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from sweeps.cluster.preflight import CheckResult, load_cluster_file, ray_cli_environment, run_checks
from sweeps.engine.console import subcommands

app = tyro.extras.SubcommandApp()

File = Annotated[Path, tyro.conf.Positional]


@app.command
def check(file: File = Path("ray_cluster.yaml")) -> int:
    """Say what is in place for a cluster and what is missing; nothing is started.

    Args:
        file: the cluster file.
    """
    return 0 if _shown(run_checks(file)) else 1


@app.command
def up(file: File = Path("ray_cluster.yaml")) -> int:
    """Check, and then start the cluster or bring it to what the file says now: `ray up`.

    A cluster that runs is restarted; sweeps on it go on when their commands are given again.

    Args:
        file: the cluster file.
    """
    if not _shown(run_checks(file)):
        print("Nothing was started. What is missing is said above; then the same command again.", file=sys.stderr)
        return 1
    # Not from Ray's copy of an earlier answer: what others opened meanwhile is closed again.
    return _ray("up", "--yes", "--no-config-cache", str(file), provider=load_cluster_file(file)["provider"]["type"])


@app.command
def ui(file: File = Path("ray_cluster.yaml")) -> int:
    """Open the cluster's MLflow at http://localhost:5000, through an SSH tunnel, until Ctrl-C.

    Args:
        file: the cluster file.
    """
    from sweeps.cluster.tracking_server import PORT

    provider = load_cluster_file(file)["provider"]["type"]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", PORT))
        except OSError:
            raise ValueError(f"port {PORT} is taken on this machine: end the program that has it") from None
    address = f"http://localhost:{PORT}/#/experiments?workflowType=machine_learning"
    print(f"The cluster's MLflow, until Ctrl-C: {address}", flush=True)
    return _ray("dashboard", "--port", str(PORT), "--remote-port", str(PORT), str(file), provider=provider)


@app.command
def mlflow(artifacts: str, folder: Path = Path("~/.xfer/mlflow"), backend: str = "", stay: bool = False) -> int:
    """Start MLflow's server in the background, on this machine's 127.0.0.1:5000, unless it answers already.

    Args:
        artifacts: address that files are kept at, such as s3://bucket/mlartifacts.
        folder: where its database and log are kept.
        backend: the database's address, such as postgresql://host/mlflow; SQLite in the folder unless given.
        stay: wait until the server ends, as a container does.
    """
    from sweeps.cluster.tracking_server import start_tracking_server

    server = start_tracking_server(artifacts, folder.expanduser(), backend)
    return server.wait() if stay and server else 0


def _shown(looked: Iterable[CheckResult]) -> bool:
    """Print what was looked at, as it comes; is nothing missing?"""
    complete = True
    for one in looked:
        print(f"  {one.status:<8} {one.name:<20} {one.said}", flush=True)
        complete &= one.status != "missing"
    return complete


def _ray(*arguments: str, provider: str) -> int:
    """Run a command of Ray's launcher; its status."""
    # Fixed hosts need the first autoscaler: the second counts the head as one of the workers.
    version = {"RAY_UP_enable_autoscaler_v2": "0" if provider == "local" else "1"}
    try:
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        return subprocess.run(command, env=ray_cli_environment() | version, check=False).returncode
    except KeyboardInterrupt:
        return 0


def main() -> NoReturn:
    """Run the command that was asked for, and exit."""
    subcommands.run_command(app, "python -m sweeps.cluster", __doc__)


if __name__ == "__main__":
    main()
