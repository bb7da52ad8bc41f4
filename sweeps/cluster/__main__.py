"""Manages a cluster: python -m sweeps.cluster check FILE | up FILE | ui FILE; on the head: mlflow."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from sweeps.cluster.check_result import CheckResult
from sweeps.cluster.preflight import load_cluster_file, ray_cli_environment, run_checks
from sweeps.engine.console import subcommands

app = tyro.extras.SubcommandApp()

File = Annotated[Path, tyro.conf.Positional]


@app.command
def check(file: File = Path("ray_cluster.yaml")) -> int:
    """Check what is in place for a cluster and what is missing; starts nothing.

    Args:
        file: the cluster file.
    """
    return 0 if _print_results(run_checks(file)) else 1


@app.command
def up(file: File = Path("ray_cluster.yaml")) -> int:
    """Check, then start the cluster or update it to the file, with `ray up`.

    A running cluster is restarted. Sweeps on it resume when their commands are run again.

    Args:
        file: the cluster file.
    """
    if not _print_results(run_checks(file)):
        print("Nothing was started. Fix what is missing above, then run the command again.", file=sys.stderr)
        return 1
    # Without Ray's cache of an earlier result, so that manual changes to the security group are undone.
    return _run_ray("up", "--yes", "--no-config-cache", str(file), provider=load_cluster_file(file)["provider"]["type"])


@app.command
def ui(file: File = Path("ray_cluster.yaml")) -> int:
    """Make the cluster's MLflow available at http://localhost:5000 through an SSH tunnel, until Ctrl-C.

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
            raise ValueError(f"port {PORT} is in use on this machine: stop the program that uses it") from None
    address = f"http://localhost:{PORT}/#/experiments?workflowType=machine_learning"
    print(f"The cluster's MLflow, until Ctrl-C: {address}", flush=True)
    return _run_ray("dashboard", "--port", str(PORT), "--remote-port", str(PORT), str(file), provider=provider)


@app.command
def mlflow(artifacts: str, folder: Path = Path("~/.xfer/mlflow"), backend: str = "", stay: bool = False) -> int:
    """Start MLflow's server in the background, on 127.0.0.1:5000, unless it is already running.

    Args:
        artifacts: URI where artifacts are stored, such as s3://bucket/mlartifacts.
        folder: folder of its database and log.
        backend: URI of the database, such as postgresql://host/mlflow. Defaults to SQLite in the folder.
        stay: wait until the server exits, as a container must.
    """
    from sweeps.cluster.tracking_server import start_tracking_server

    server = start_tracking_server(artifacts, folder.expanduser(), backend)
    return server.wait() if stay and server else 0


def _print_results(results: Iterable[CheckResult]) -> bool:
    """Print each check as soon as it is done; return True if nothing is missing."""
    complete = True
    for result in results:
        print(f"  {result.status:<8} {result.name:<24} {result.message}", flush=True)
        complete &= result.status != "missing"
    return complete


def _run_ray(*arguments: str, provider: str) -> int:
    """Run a command of Ray's launcher and return its exit status."""
    # Fixed hosts need autoscaler v1: v2 counts the head as one of the workers.
    version = {"RAY_UP_enable_autoscaler_v2": "0" if provider == "local" else "1"}
    try:
        command = [sys.executable, "-m", "ray.scripts.scripts", *arguments]
        return subprocess.run(command, env=ray_cli_environment() | version, check=False).returncode
    except KeyboardInterrupt:
        return 0


def main() -> NoReturn:
    """Run the command given on the command line, and exit."""
    subcommands.run_command(app, "python -m sweeps.cluster", __doc__)


if __name__ == "__main__":
    main()
