"""Early start of Ray: connects in a thread, so that Ray's processes start while the driver measures the data.

Ray needs seconds to start, and the processes of the first trials need as long again to import torch. Both happen on
other cores while the driver's own work keeps one core busy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.resources import cluster
from xfer.batched_probes.compatibility import can_batch

BLAS_VARIABLE = "OPENBLAS_NUM_THREADS"
"""Environment variable with the number of threads of an OpenBLAS that is loaded later."""


class _Start(threading.Thread):
    """Connects to Ray and imports Ray Tune.

    Meanwhile NumPy and SciPy multiply matrices in the calling thread only. Ray forks processes; OpenBLAS ends its
    threads before a fork and waits for them, and if another thread multiplies matrices at that moment, both wait for
    ever (seen on 2026-12-01).

    It lives until `end`, because on Linux the system kills Ray's processes as soon as the thread that has started them
    ends (prctl(2), PR_SET_PDEATHSIG).
    """

    def __init__(self) -> None:
        super().__init__(name="ray-start", daemon=True)
        self.done = threading.Event()
        """Set once Ray is connected or has failed to start."""
        self.error: BaseException | None = None
        """The reason for which Ray has failed to start; raised where Ray is needed."""
        self._ended = threading.Event()
        self._threads = torch.get_num_threads()
        torch.set_num_threads(max(1, self._threads // 2))  # Ray's processes import torch on the other cores
        self._blas_limit = threadpool_limits(1, user_api="blas")
        self._variable = os.environ.get(BLAS_VARIABLE)
        os.environ[BLAS_VARIABLE] = "1"

    def restore_environment(self) -> None:
        """Undo the change of the environment. Only the main thread may: it reads the environment without a lock."""
        if self._variable is None:
            os.environ.pop(BLAS_VARIABLE, None)
        else:
            os.environ[BLAS_VARIABLE] = self._variable

    def end(self) -> None:
        """Let the thread end, and with it Ray's processes."""
        self._ended.set()
        self.restore_environment()
        torch.set_num_threads(self._threads)

    def run(self) -> None:
        try:
            from sweeps.engine.trials import ray_connection

            ray_connection.connect_ray()
            from sweeps.engine.trials import ray_tune  # noqa: F401  (Ray Tune takes another second to import)
        except BaseException as error:  # the reason is shown if Ray is needed; the driver must not wait for ever
            self.error = error
        finally:
            self._blas_limit.restore_original_limits()
            self.done.set()
        self._ended.wait()


_start: _Start | None = None


def needs_ray(prepared: Prepared) -> bool:
    """Return whether a sweep starts with a trial that only Ray Tune can run, on a Ray of this machine."""
    if cluster.has_cluster_address():
        return False  # it has been joined already
    space, arms = prepared.space, prepared.plan.arms
    return not all(can_batch(prepared.recipe(space.configured(params))) for params in space.known_good(arms))


def start() -> None:
    """Begin to connect to Ray, unless that has been begun."""
    global _start
    if _start is None:
        _start = _Start()
        _start.start()


def is_started() -> bool:
    """Return whether Ray was started early and has not been stopped since."""
    return _start is not None


def is_ready() -> bool:
    """Return whether `wait` would return at once."""
    return _start is None or _start.done.is_set()


def wait() -> None:
    """Wait until Ray is connected, if it was started early.

    Raises:
        ValueError: Ray cannot be started; the message says why.
    """
    if _start is not None:
        _start.done.wait()
        _start.restore_environment()
        if _start.error is not None:
            raise _start.error


@contextmanager
def stopped_at_end() -> Iterator[None]:
    """Stop a Ray that was started early, however the block ends: an error may come before anything needs Ray."""
    global _start
    try:
        yield
    finally:
        if _start is not None:
            _start.done.wait()
            if _start.error is None:
                from sweeps.engine.trials import ray_connection

                ray_connection.disconnect_ray()  # does nothing if the sweep has done so
            _start.end()
            _start = None
