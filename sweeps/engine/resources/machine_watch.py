"""Says once a minute why a sweep on a cluster is still waiting for machines.

Ray's driver does not show what its autoscaler does. The state of machines comes from the autoscaler itself, the reasons
of failures from its log on the head: the state holds none for machines that a node provider could not start.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sweeps.engine.resources import cluster
from sweeps.engine.resources.launch_errors import advise

if TYPE_CHECKING:
    from ray.autoscaler.v2.schema import ClusterStatus

PERIOD_SECONDS = 60.0
"""Seconds between two looks at the cluster."""

FAILED_LAUNCH = re.compile(r"Failed to launch (?P<count>\d+) nodes of type (?P<type>\S+): (?P<reason>.+)")
FAILED_SETUP = re.compile(r"Ray installation failed on instance (?P<machine>\S+): (?P<reason>.+)")
MAX_REASON_LENGTH = 300
"""Maximum number of printed characters of a reason."""


@dataclass
class Failures:
    """Failures since the watch began, from the autoscaler's log."""

    launches: Counter[str] = field(default_factory=Counter)
    """Number of machines that could not be started, by node type."""
    launch_reasons: dict[str, str] = field(default_factory=dict)
    """Latest reason by node type."""
    setups: int = 0
    """Number of attempts to set a machine up that have failed."""
    setup_reason: str = ""
    """Latest reason."""

    def add_log(self, text: str) -> None:
        """Add the failures in a part of the autoscaler's log.

        >>> failures = Failures()
        >>> failures.add_log("INFO -- Failed to launch 2 nodes of type l4: VcpuLimitExceeded")
        >>> failures.launches, failures.launch_reasons
        (Counter({'l4': 2}), {'l4': 'VcpuLimitExceeded'})
        """
        for line in text.splitlines():
            if launch := FAILED_LAUNCH.search(line):
                self.launches[launch["type"]] += int(launch["count"])
                self.launch_reasons[launch["type"]] = launch["reason"]
            elif setup := FAILED_SETUP.search(line):
                self.setups += 1
                self.setup_reason = setup["reason"]


def describe(status: ClusterStatus, resource: str, maximum: float, failures: Failures) -> list[str]:
    """Return what is to be said about machines that a sweep waits for, one line each; nothing if it does not wait.

    Args:
        status: the autoscaler's state.
        resource: `GPU`, or `CPU` on a cluster without GPUs.
        maximum: amount of the resource once the cluster has grown to its maximum.
        failures: failures so far.
    """
    demands = status.resource_demands
    waits = demands.placement_group_demand or demands.ray_task_actor_demand or demands.cluster_constraint_demand
    up = status.total_resources().get(resource, 0.0)
    starting = Counter(node.ray_node_type_name for node in status.pending_nodes)
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] += launch.count
    failed = Counter(failures.launches)
    if not failed:  # without a log on this machine
        for launch in status.failed_launches:
            failed[launch.ray_node_type_name] += launch.count
    if not waits or (up and not failed and not failures.setups):
        return []
    names = ", ".join(f"{count} {name}" for name, count in sorted(starting.items()))
    lines = [f"machines: {up:g} of {maximum:g} {resource}s are up, {names or 'no machine'} starting"]
    if not (up or names or failed or failures.setups):
        lines.append(
            "  Ray's autoscaler has requested none: its logs on the head, monitor.log and monitor.err, say why"
        )
    for name, count in sorted(failed.items()):
        reason = failures.launch_reasons.get(name, "")
        lines.append(f"  {name} could not be started, {count} so far: {reason[:MAX_REASON_LENGTH] or 'reason unknown'}")
        lines.append(f"    {advise(reason)}")
    if failures.setups:
        lines.append(f"  set-up failed, {failures.setups} so far: {failures.setup_reason[:MAX_REASON_LENGTH]}")
        lines.append("    the output of its commands is in /tmp/ray/session_latest/logs/monitor.out on the head")
    return lines


class MachineWatch:
    """Prints, in a thread, what `describe` returns; a context manager.

    While nothing is up, it prints once per period. Later it prints only when something has changed.

    Args:
        gcs_address: address of Ray's control store.
        print_line: prints a line to the user.
        period_seconds: seconds between two looks.
        log_file: the autoscaler's log; without one on this machine, reasons are unknown.
    """

    def __init__(
        self,
        gcs_address: str,
        print_line: Callable[[str], None],
        period_seconds: float = PERIOD_SECONDS,
        log_file: Path | None = None,
    ) -> None:
        self._gcs_address = gcs_address
        self._print_line = print_line
        self._period_seconds = period_seconds
        self._log_file = autoscaler_log() if log_file is None else log_file
        self._read_bytes = self._log_file.stat().st_size if self._log_file.is_file() else 0
        self._failures = Failures()
        self._printed = ""
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="machine-watch", daemon=True)

    def start(self) -> Self:
        """Start watching."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(self) -> list[str]:
        """Return what is to be said now."""
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(self._gcs_address)
        self._failures.add_log(self._new_log())
        types, max_workers = cluster.worker_node_types()
        resource = "GPU" if cluster.max_resource("GPU", types, max_workers) else "CPU"
        maximum = cluster.max_resource(resource, types, max_workers)
        return describe(status, resource, max(maximum, status.total_resources().get(resource, 0.0)), self._failures)

    def print_news(self) -> None:
        """Look, and print what is to be said unless it has been printed before and something is up."""
        try:
            lines = self.look()
        except Exception:  # Ray is ending, or its control store is busy: the next look may succeed
            return
        text = re.sub(r"\d+ so far", "", "\n".join(lines))  # counts alone are no news
        if lines and (lines[0].startswith("machines: 0 of ") or text != self._printed):
            waited = (time.monotonic() - self._began) / 60
            self._print_line(f"{lines[0]}; {waited:.0f} min since the start")
            for line in lines[1:]:
                self._print_line(line)
        self._printed = text

    def _work(self) -> None:
        while not self._stop.wait(self._period_seconds):
            self.print_news()

    def _new_log(self) -> str:
        """Return what has been added to the autoscaler's log, complete lines only."""
        try:
            with self._log_file.open("rb") as file:
                file.seek(self._read_bytes if self._read_bytes <= os.fstat(file.fileno()).st_size else 0)
                text = file.read()
                complete = text[: text.rfind(b"\n") + 1]
                self._read_bytes = file.tell() - len(text) + len(complete)
        except OSError:
            return ""
        return complete.decode(errors="replace")


def autoscaler_log() -> Path:
    """Return where Ray's autoscaler writes its log on the head."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "session_latest", "logs", "monitor.log")


def start_watch(print_line: Callable[[str], None]) -> None:
    """Watch the machines of the cluster that Ray is connected to, if any, until this process ends."""
    import ray

    if ray.is_initialized():
        MachineWatch(ray.get_runtime_context().gcs_address, print_line).start()
