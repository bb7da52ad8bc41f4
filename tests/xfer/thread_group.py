"""Devices of a process group that are threads of one process: all-reduce in main memory, without starting processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from xfer.distributed.process_group import PeerLostError, Rank


class ThreadAllReduce:
    """Sums the tensors of `size` threads."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size, timeout=20)
        self._tensors = [None] * size
        self.messages = 0

    def of(self, index):
        """The all-reduce function of one thread."""

        def all_reduce(tensor):
            self._tensors[index] = tensor.clone()
            if self._barrier.wait() == 0:
                self.messages += 1
            total = torch.stack(self._tensors).sum(dim=0)
            self._barrier.wait()
            tensor.copy_(total)

        return all_reduce

    def abort(self):
        """Make all waiting threads fail."""
        self._barrier.abort()


def run_on_threads(size, work, all_reduce=None):
    """Call `work` with the Rank of each of `size` devices, in a thread each, and return the results in rank order."""
    all_reduce = all_reduce or ThreadAllReduce(size)

    def run_device(index):
        try:
            return work(Rank(index, size, all_reduce.of(index)))
        except BaseException:
            all_reduce.abort()
            raise

    with ThreadPoolExecutor(size) as executor:
        futures = [executor.submit(run_device, index) for index in range(size)]
    errors = [future.exception() for future in futures if future.exception()]
    for error in sorted(errors, key=lambda error: isinstance(error, PeerLostError)):  # the cause first
        raise error
    return [future.result() for future in futures]
