"""The connection to Ray: joins the cluster at RAY_ADDRESS, or starts a Ray on this machine, and leaves it again."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import re
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._private import ray_constants, services

from sweeps.engine.resources import cluster, scratch
from sweeps.engine.resources.cluster_address import (
    check_cluster_address,
    check_named_host,
    cluster_error,
    parse_cluster_address,
)

RAY_ENVIRONMENT: dict[str, str] = {
    # Interrupts are handled by the command line, and the store replaces Tune's own files.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Its snapshots of all trials grow with the sweep and are never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # A trial that fails before its first report must not end the sweep.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise Ray leaves CUDA_VISIBLE_DEVICES unset, and so all GPUs visible, for trials that request none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # Tune runs a trial in a thread, to which glibc would give its own small arena. That returns large blocks to the
    # system whatever `xfer.devices.host_memory` has set: a training step was a sixth slower (2026-11-25).
    "MALLOC_ARENA_MAX": "1",
    # Otherwise micro-batches of different sizes, evaluation and the next trial of a process each fragment the memory,
    # and fragments count against the limit of the process.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
"""Environment of the processes of a local Ray; on a cluster, the cluster file has to set it on the machines."""

LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Environment variable that, set to 0, makes Ray listen on 127.0.0.1 only, as by default on macOS."""

PRELOADED_MODULE = "sweeps.engine.trials.preload"
"""Module that each process of a local Ray imports when it starts."""

MAX_PRELOADING_PROCESSES = 16
"""Number of CPUs up to which the processes of a local Ray import torch before a trial asks for it. On larger machines
fewer trials than CPUs may run at a time, and each process with torch takes memory."""

LOCAL_RAY_ENVIRONMENT: dict[str, str] = {
    # Otherwise Ray listens on every interface, and depends on the address of the network that a laptop is in.
    LOOPBACK_VARIABLE: "0",
    # By default Ray keeps as many idle processes as there are free CPUs: none while trials use all of them. Each batch
    # of probes would then import torch again, which takes 7 to 13 seconds of a core (2026-11-27).
    "RAY_num_workers_soft_limit": str((os.cpu_count() or 1) + 1),
    # As many processes as there are CPUs start with Ray. They import what a trial needs while they wait for one.
    **({"RAY_preload_python_modules": PRELOADED_MODULE} if (os.cpu_count() or 1) <= MAX_PRELOADING_PROCESSES else {}),
}
"""Additional environment of a Ray that is started on this machine alone."""

CLUSTER_ENVIRONMENT: dict[str, str] = {
    # Attempts to connect, a second or more each; Ray's default is 20. `check_cluster_address` has seen an answer.
    "RAY_gcs_server_port_wait_time_s": "2",
}
"""Additional environment of a driver that joins a cluster."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Size of a local Ray's object store. Ray's default is 30% of the memory, and a sweep only passes small objects."""


def connect_ray() -> None:
    """Join the cluster at RAY_ADDRESS, or start Ray on this machine, without printing anything.

    A cluster that was started on this machine by another program is joined only if RAY_ADDRESS names it.

    Raises:
        ValueError: the cluster cannot be joined, or Ray cannot be started; the message says why.
    """
    address = cluster.cluster_address()
    for name, value in {**RAY_ENVIRONMENT, **(CLUSTER_ENVIRONMENT if address else LOCAL_RAY_ENVIRONMENT)}.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        with _keep_python_sigterm_handler():
            if address:
                _join_cluster(address)
            else:
                _start_local_ray()


@contextlib.contextmanager
def _keep_python_sigterm_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which ray.init replaces. In other threads it warns instead: discard that."""
    if threading.current_thread() is not threading.main_thread():
        logger = logging.getLogger("ray")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _join_cluster(address: str) -> None:
    check_named_host(address)
    try:
        target = _find_cluster() if address == "auto" else address
        resolved = services.canonicalize_bootstrap_address_or_die(target)
        check_cluster_address(*parse_cluster_address(resolved), address)
        if not services.find_node_ids():  # type: ignore[no-untyped-call]
            raise ConnectionError("this machine does not belong to it: no raylet runs here")  # Ray looks for a minute
        with _discard_output():
            ray.init(target, log_to_driver=False, configure_logging=False)
    except ValueError:
        raise
    except Exception as error:  # of many kinds: there is no cluster, or one of another version or token
        raise cluster_error(address, error) from error
    atexit.register(disconnect_ray)


def _find_cluster() -> str:
    """Return "auto" if Ray finds the cluster on this machine by itself: unless it could find the Ray of another sweep.

    Raises:
        ConnectionError: there are no others.
    """
    running: frozenset[str] = services.find_gcs_addresses()  # type: ignore[no-untyped-call]
    of_sweeps = running & gcs_addresses_of_sweeps()
    if not of_sweeps:
        return "auto"
    if clusters := running - of_sweeps:
        return next(iter(clusters))
    raise ConnectionError("no cluster runs on this machine, only other sweeps")


def gcs_addresses_of_sweeps() -> frozenset[str]:
    """Return the addresses of the Rays that sweeps have started for themselves on this machine."""
    addresses = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended
            words = path.read_bytes().decode(errors="replace").split("\0")
            if any(re.search(rf"/{scratch.PREFIX}\d+(-\d+)?/session_", word) for word in words):
                addresses |= {word.partition("=")[2] for word in words if word.startswith("--gcs-address=")}
    return frozenset(addresses)


@contextlib.contextmanager
def _discard_output() -> Iterator[None]:
    """Discard what this process prints, C++ code included: the reason of a failure is also in Ray's exception."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("wb") as null:
        for number in (1, 2):
            os.dup2(null.fileno(), number)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _start_local_ray() -> None:
    # Read from the environment when Ray was imported.
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[LOOPBACK_VARIABLE] != "0"
    folder = scratch.current().folder
    protect_token_file()
    try:
        ray.init(
            "local",
            log_to_driver=False,
            configure_logging=False,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
            _plasma_directory=None if _shared_memory_bytes() >= OBJECT_STORE_BYTES else str(folder),
        )
    except Exception as error:  # of many kinds
        lines = " ".join(str(error).split())[:600]
        atexit.unregister(scratch.remove_current)
        raise ValueError(f"Ray could not be started on this machine: {lines}. Its log files are in {folder}") from error
    atexit.register(disconnect_ray)


def protect_token_file() -> None:
    """Let only this user read Ray's token, whose owner can run code: create it, or take the rights of others away.

    Ray itself would create it with the rights of any new file.
    """
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):  # Ray reports what is wrong with it
        if path.exists():
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
        elif not os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(secrets.token_hex(32))


def _shared_memory_bytes() -> int:
    """Return the free bytes of /dev/shm; 0 without it."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0


def disconnect_ray() -> None:
    """Leave the cluster, or stop the Ray of this machine and remove its files. Running trials are interrupted."""
    with _keep_sigterm_handler():
        ray.shutdown()
    scratch.remove_current()


@contextlib.contextmanager
def _keep_sigterm_handler() -> Iterator[None]:
    """Set the handler of SIGTERM again and again, because Ray's C++ code resets it while it disconnects.

    Python would not notice, and a second SIGTERM would end this process without its exit status. The handler is set
    below Python, from a thread, because Python sets handlers in the main thread only, which waits for Ray.
    """
    libc = ctypes.CDLL(None)
    action = ctypes.create_string_buffer(512)  # a struct sigaction, of 152 bytes on Linux
    libc.sigaction(signal.SIGTERM, None, action)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(0.001):
            libc.sigaction(signal.SIGTERM, action, None)

    thread = threading.Thread(target=keep, name="sigterm", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        libc.sigaction(signal.SIGTERM, action, None)
