"""Heartbeats through Ray: processes say how far they are in Ray's key-value store, where the watchdog finds it.

The store is part of Ray's head, so this works in a cluster as on one machine. It is not part of Ray's public interface;
this is the only module that uses it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.engine.trials.watchdog import HANG_SECONDS, Beat
from xfer.devices import heartbeat

SEND_SECONDS = min(10.0, HANG_SECONDS / 20)
"""Seconds between two heartbeats."""
STACK_SECONDS = 5.0
"""Seconds that a process gets to write its stack."""
END_SECONDS = 120.0
"""Seconds that another machine gets to end a process."""
STACK_SIGNAL = signal.SIGUSR1
WATCHED_FUNCTIONS = (" in run_trial", " in run_task")
"""Ends of the lines of a stack that tell the thread that works (`ray_tune`) from those of Ray."""


class HangError(TimeoutError):
    """The work hung before, as often as it may. An OSError, and so a fault of the machine."""


@contextlib.contextmanager
def watched(work: str) -> Iterator[None]:
    """Send heartbeats while this process works on something.

    Args:
        work: what it works on, in words for a message, such as "trial 0007". Unique among the driver's work.
    """
    with tempfile.TemporaryFile() as stack:
        faulthandler.register(STACK_SIGNAL, stack, all_threads=True)
        heartbeat.restart()
        ended = threading.Event()
        thread = threading.Thread(target=_send, args=(work, stack.fileno(), ended), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(SEND_SECONDS)  # it may be waiting for a head that does not answer
            faulthandler.unregister(STACK_SIGNAL)


def _send(work: str, file: int, ended: threading.Event) -> None:
    context = ray.get_runtime_context()
    key = f"{_prefix()}beat/{context.get_node_id()}/{os.getpid()}/{time.time_ns()}"
    process = (socket.gethostname(), os.getpid(), file, os.fstat(file).st_ino)
    beat = Beat(work, context.get_node_id(), *process, sent=0, steps=0, slowest_seconds=0.0, is_waiting=False)
    while True:
        now = heartbeat.current()
        beat = replace(beat, sent=beat.sent + 1, steps=now.steps)
        beat = replace(beat, slowest_seconds=now.slowest_seconds, is_waiting=now.is_waiting)
        with contextlib.suppress(Exception):  # the head cannot be reached at the moment
            internal_kv._internal_kv_put(key, json.dumps(asdict(beat)))
        if ended.wait(SEND_SECONDS):
            break
    with contextlib.suppress(Exception):
        internal_kv._internal_kv_del(key)


class RayProcesses:
    """The processes that Ray runs for this driver; the watchdog's `Processes`."""

    def beats(self) -> dict[str, Beat]:
        """See `watchdog.Processes`."""
        if not ray.is_initialized():  # asking Ray would start it
            return {}
        keys: list[bytes] = internal_kv._internal_kv_list(f"{_prefix()}beat/")
        values = {key.decode(): _get(key.decode()) for key in keys}
        return {key: Beat(**json.loads(value)) for key, value in values.items() if value}

    def end(self, key: str, beat: Beat) -> str | None:
        """See `watchdog.Processes`."""
        try:
            if beat.node == ray.get_runtime_context().get_node_id():
                return end_process(beat)
            # No CPU is requested: the machine's may all be held by trials.
            there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
            options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": there}
            place: str | None = ray.get(ray.remote(**options)(end_process).remote(beat), timeout=END_SECONDS)
            return place
        except ray.exceptions.RayError:  # the machine is lost: Ray notices that itself
            return None
        finally:
            internal_kv._internal_kv_del(key)

    def give_up(self, work: str, reason: str) -> None:
        """See `watchdog.Processes`."""
        internal_kv._internal_kv_put(_given_up_key(work), reason)


def why_given_up(work: str) -> str | None:
    """Return why the watchdog has given up a piece of work; None if it has not."""
    if not ray.is_initialized():
        return None
    return (_get(_given_up_key(work)) or b"").decode() or None


def end_process(beat: Beat) -> str | None:
    """Kill a process on this machine.

    Returns:
        Where it was, as part of a sentence; None if it had ended, so that its id may belong to another process.
    """
    if sys.platform == "linux":
        path = Path(f"/proc/{beat.pid}/fd/{beat.file}")
        try:
            if path.stat().st_ino != beat.inode:
                return None
            place = "was stopped" if _is_stopped(beat.pid) else _place(beat.pid, path)
            os.kill(beat.pid, signal.SIGKILL)
        except OSError:
            return None
        return place
    # Not run on macOS, where a process cannot read the files of another; titles tell Ray's processes from others.
    title = subprocess.run(["ps", "-o", "command=", "-p", str(beat.pid)], capture_output=True, check=False)
    if not title.stdout.startswith(b"ray::"):
        return None
    os.kill(beat.pid, signal.SIGKILL)
    return "gave no stack"


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] in "Tt"


def _place(pid: int, path: Path) -> str:
    """Ask a process for the stacks of its threads, and return where the one that works is."""
    os.kill(pid, STACK_SIGNAL)
    limit = time.monotonic() + STACK_SECONDS
    while not (stack := path.read_text(encoding="utf-8", errors="replace")) and time.monotonic() < limit:
        time.sleep(0.1)
    time.sleep(0.2)  # it may still be writing
    return describe_stack(path.read_text(encoding="utf-8", errors="replace") or stack)


def describe_stack(stack: str) -> str:
    r"""Return where a process was, from what faulthandler wrote: the innermost frame of the thread that works.

    Two callers outside Python's own library are added.

    >>> describe_stack('Thread 0x1 (most recent call first):\n  File "a/b.py", line 3 in f\n  File "c.py", line 9 in g')
    'was at b.py:3 in f, called from c.py:9 in g'
    """
    threads = [block.splitlines()[1:] for block in stack.split("\n\n") if block.strip()]
    working = [frames for frames in threads if any(frame.endswith(WATCHED_FUNCTIONS) for frame in frames)]
    innermost, *outer = (working or threads[-1:] or [[]])[0] or [""]
    outer = [frame for frame in outer if "site-packages" in frame or "/lib/python3" not in frame]
    frames = []
    for frame in (innermost, *outer[:2]) if innermost else ():
        file, _, rest = frame.strip().removeprefix('File "').partition('", line ')
        line, _, function = rest.partition(" in ")
        frames.append(f"{Path(file).name}:{line} in {function}")
    return f"was at {', called from '.join(frames)}" if frames else "gave no stack"


def _prefix() -> str:
    """Return the start of all keys of this driver; on a cluster, others use the same store."""
    return f"xfer-watchdog/{ray.get_runtime_context().get_job_id()}/"


def _given_up_key(work: str) -> str:
    return f"{_prefix()}given-up/{work}"


def _get(key: str) -> bytes | None:
    value: bytes | None = internal_kv._internal_kv_get(key)
    return value
