"""Launcher: starts the worker processes of a run on several devices, and reports why one of them ended.

The run's own process is the leader, rank 0: only it evaluates, saves checkpoints and yields epochs. It sends its
workers one task per epoch, and they end when it does.
"""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing.connection
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from xfer.devices.device import nth_device
from xfer.devices.host_memory import retain_freed_memory
from xfer.distributed.process_group import PeerLostError, Rank, join_process_group

log = logging.getLogger(__name__)

READY = "ready"
"""First message of a worker that can train. Any other message is the reason why it ended."""

START_SECONDS = 600.0
"""Seconds that workers get to import torch, build the network and connect. On a slow disk the imports take a minute."""

SHUTDOWN_SECONDS = 10.0
"""Seconds that workers get to end, and the leader waits to learn why one did."""

PEER_LOST, NOT_CONNECTED = 75, 76
"""Exit statuses of a worker that lost its connection to the others, or could not connect to them. Most likely another
one has failed, so these count only if no other fails within `PATIENCE_SECONDS`."""

PATIENCE_SECONDS = SHUTDOWN_SECONDS / 2
"""Seconds to wait for the worker that has failed, after another has lost its connection to it."""

Task = dict[str, Any]
"""What the leader asks of its workers in one epoch: plain data and tensors."""

TrainAsWorker = Callable[[Rank, Iterable[Task]], None]
"""Trains as one of several devices: carries out each task as it arrives, and returns after the last."""


class WorkerError(RuntimeError):
    """A worker failed; the message says which device and why."""


class WorkerLostError(RuntimeError):
    """A worker process died without a message, most likely killed. A new Run can resume from the checkpoint."""


def serialize(message: Mapping[str, Any]) -> bytes:
    """Return plain data and tensors as bytes."""
    content = io.BytesIO()
    torch.save(dict(message), content)
    return content.getvalue()


def deserialize(content: bytes) -> dict[str, Any]:
    """Return what `serialize` was given, with tensors on the CPU. Creates only plain data and tensors."""
    message: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return message


class WorkerGroup:
    """The worker processes of this process, which leads them as rank 0.

    Starting takes as long as importing torch and building the network. Always call `close`. Workers also end when the
    thread that started them does, even if it is killed.

    Args:
        prepare: called in each worker with `job` and its device; returns what trains there. A module-level function.
        job: plain data.
        device: the leader's device.
        size: number of devices, including the leader's.

    Raises:
        WorkerError: a worker failed to start.
        WorkerLostError: a worker died before it had started, or did not start within `START_SECONDS`.
    """

    def __init__(
        self,
        prepare: Callable[[Mapping[str, Any], torch.device], TrainAsWorker],
        job: Mapping[str, Any],
        device: torch.device,
        size: int,
    ) -> None:
        self._device = device
        self._size = size
        self._failed: Future[int | None] = Future()
        """Index of the first worker that failed; None once all have ended and none has."""
        self._closing = False
        self._in_task = True
        self._membership = contextlib.ExitStack()
        self._folder = Path(tempfile.mkdtemp(prefix="xfer-workers-"))
        pipes = [Pipe() for _ in range(1, size)]
        self._connections = [ours for ours, _ in pipes]
        theirs = [connection for _, connection in pipes]
        args = (pickle.dumps(prepare), dict(job), theirs, str(self._folder), str(device), torch.get_num_threads())
        self._workers = start_processes(  # type: ignore[no-untyped-call]
            _run_worker, args, nprocs=size - 1, join=False, daemon=True, start_method="spawn"
        )
        for connection in theirs:
            connection.close()  # so that reading ends when the worker does
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="worker watcher")
        self._watcher.start()
        deadline = time.monotonic() + START_SECONDS
        try:
            for index in range(size - 1):
                if not self._connections[index].poll(max(0.0, deadline - time.monotonic())):
                    raise WorkerLostError(f"{self._name(index)} did not start within {START_SECONDS:g} s")
                message = self._receive(index)
                if not message:  # this worker has ended, maybe only because another failed
                    self.raise_worker_error(EOFError())
                if message != READY:
                    raise self._worker_error(index, message)
            self.rank = self._join(deadline)
            self._in_task = False
        except BaseException:
            self.close()
            raise

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        pids: list[int] = self._workers.pids()
        return pids

    def send_task(self, task: Task) -> None:
        """Start a task on all workers. The leader takes part in it, and calls `finish_task` at its end.

        Raises:
            WorkerError: a worker has failed.
            WorkerLostError: a worker process has died.
        """
        self._in_task = True
        content = serialize(task)
        try:
            for connection in self._connections:
                connection.send_bytes(content)
        except OSError as error:
            self.raise_worker_error(error)

    def finish_task(self) -> None:
        """End a task that the leader has completed.

        Raises:
            WorkerError: a worker has failed.
            WorkerLostError: a worker process has died.
        """
        self.raise_worker_error(None)
        self._in_task = False

    def raise_worker_error(self, error: BaseException | None) -> None:
        """If a worker has failed, raise its error in place of `error`; otherwise do nothing.

        Args:
            error: what the leader itself ran into. If it lost a connection, this waits for the reason.

        Raises:
            WorkerError: a worker has failed.
            WorkerLostError: a worker process has died.
        """
        lost = isinstance(error, PeerLostError | distributed.DistError | OSError | EOFError)
        if lost:
            wait([self._failed], SHUTDOWN_SECONDS)
        if (index := self._failed_index) is not None:
            while (message := self._receive(index)) == READY:
                pass
            raise self._worker_error(index, message) from error
        if lost:
            raise WorkerLostError("the connection to another device was lost") from error

    def close(self) -> None:
        """End all workers, and wait until they have ended."""
        self._closing = True
        if self._in_task or self._failed_index is not None:  # an orderly exit is impossible in the middle of a step
            self._kill()
            self._abort()
            with contextlib.suppress(RuntimeError):
                self._membership.close()
        # Otherwise the end of the connection is the end of their tasks, and they leave the process group while this
        # process does: with NCCL each would wait for the other.
        for connection in self._connections:
            connection.close()
        self._membership.close()
        self._watcher.join(SHUTDOWN_SECONDS)
        if self._watcher.is_alive():
            self._kill()
            self._watcher.join(SHUTDOWN_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self, deadline: float) -> Rank:
        """Join the process group, unless a worker fails meanwhile or the deadline, a monotonic time, passes.

        Neither gloo nor NCCL can be interrupted while they connect, and they would wait for a lost process. They
        connect in a thread of their own, which is left behind in that case.
        """
        joined: Future[Rank] = Future()

        def join() -> None:
            try:
                rank = self._membership.enter_context(join_process_group(self._folder, 0, self._size, self._device))
                joined.set_result(rank)
            except InvalidStateError:  # the leader has given up waiting
                self._membership.close()
            except BaseException as error:
                with contextlib.suppress(InvalidStateError):
                    joined.set_exception(error)

        threading.Thread(target=join, daemon=True, name="process group").start()
        either: list[Future[Any]] = [joined, self._failed]  # the latter also once all workers have ended
        wait(either, max(0.0, deadline - time.monotonic()), FIRST_COMPLETED)
        if joined.cancel():
            if self._failed.done():
                self.raise_worker_error(EOFError())
            raise WorkerLostError(f"the {self._size} devices did not connect within {START_SECONDS:g} s")
        try:
            return joined.result()
        except RuntimeError as error:
            self.raise_worker_error(PeerLostError(f"connecting to the other devices failed: {error}"))
            raise

    @property
    def _failed_index(self) -> int | None:
        return self._failed.result() if self._failed.done() else None

    def _watch(self) -> None:
        """Wait until all workers have ended. The first failure ends the others."""
        running = {process.sentinel: index for index, process in enumerate(self._workers.processes)}
        consequence: int | None = None  # the first worker that has ended because it could not reach another
        while running:
            ready = multiprocessing.connection.wait(running, None if consequence is None else PATIENCE_SECONDS)
            for sentinel in ready:
                index = running.pop(sentinel)
                process = self._workers.processes[index]
                process.join()
                if process.exitcode in (PEER_LOST, NOT_CONNECTED):
                    consequence = index if consequence is None else consequence
                elif process.exitcode != 0:
                    self._set_failed(index)
            if not ready:
                self._set_failed(consequence)
        self._set_failed(consequence)

    def _set_failed(self, index: int | None) -> None:
        if self._failed.done():
            return
        self._failed.set_result(index)
        if index is not None:
            self._kill()
            if not self._closing:
                self._abort()

    def _kill(self) -> None:
        for process in self._workers.processes:
            process.kill()

    def _abort(self) -> None:
        # Gloo notices by itself that a process is gone; an NCCL kernel would wait for it forever.
        if self._device.type == "cuda" and distributed.is_initialized():
            with contextlib.suppress(Exception):  # the watcher and `close` may get here at the same time
                distributed.group.WORLD.abort()  # type: ignore[union-attr]

    def _receive(self, index: int) -> str:
        """The next message of a worker; empty if it has ended without one."""
        try:
            return str(self._connections[index].recv())
        except (EOFError, OSError):
            return ""

    def _worker_error(self, index: int, message: str) -> WorkerError | WorkerLostError:
        exit_status = self._workers.processes[index].exitcode
        if not message:
            return WorkerLostError(f"the process on {self._name(index)} was lost (exit status {exit_status})")
        error = WorkerLostError if exit_status == PEER_LOST else WorkerError
        return error(f"{self._name(index)}: {message}")

    def _name(self, index: int) -> str:
        return f"device {index + 2} of {self._size}"


def _run_worker(
    index: int,
    prepare: bytes,
    job: Mapping[str, Any],
    connections: list[Connection],
    folder: str,
    leader_device: str,
    threads: int,
) -> None:
    """Main function of a worker process: carry out the leader's tasks until it closes the connection.

    `prepare` is pickled, so that an error in the import of its module can be reported.
    """
    os.setpgrp()  # a keyboard interrupt is for the leader, which ends its workers
    # torch has SIGINT sent to a worker whose leader dies: end at once, even inside a collective operation.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    leader = connections.pop(index)
    for connection in connections:  # those of the other workers
        connection.close()
    torch.set_num_threads(threads)
    retain_freed_memory()
    status = 1
    try:
        device = nth_device(torch.device(leader_device), index + 1)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        train_as_worker: TrainAsWorker = pickle.loads(prepare)(job, device)
        leader.send(READY)
        status = NOT_CONNECTED
        with join_process_group(Path(folder), index + 1, len(connections) + 2, device) as rank:
            try:
                train_as_worker(rank, _receive_tasks(leader))
            except (PeerLostError, distributed.DistError) as error:
                _fail(leader, error, PEER_LOST)
            except Exception as error:
                _fail(leader, error, 1)  # at once: leaving the process group could wait for the other devices
    except Exception as error:
        _fail(leader, error, status)
    os._exit(0)  # the leader would have to wait for the interpreter's shutdown


def _receive_tasks(leader: Connection) -> Iterator[Task]:
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield deserialize(leader.recv_bytes())


def _fail(leader: Connection, error: Exception, status: int) -> NoReturn:
    """End this process with an exit status, and report why."""
    if status != PEER_LOST:
        log.error("worker failed", exc_info=error)
    with contextlib.suppress(OSError):
        leader.send(f"{type(error).__name__}: {error}")
    os._exit(status)
