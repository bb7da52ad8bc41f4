"""Team: several devices of one machine that train one recipe together, a process for each.

The run's own process leads, as rank 0. The others follow: each has the same Run of the same recipe, draws the same
order, augmentations and mixtures, and takes a slice of every batch. Gradients are added up over all of them, so that
every device takes the same step, and it is that of the whole batch. Only the leader evaluates, keeps checkpoints and is
heard of; followers are told one epoch after another, and end with the leader, whatever ends it.

All of it stays inside the machine: processes find each other through a file, and talk over the loopback interface or,
between GPUs, however NCCL sees fit. Tested with gloo on CPUs; NCCL has not run yet.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

READY = b"ready"
"""What a follower says once it has a Run. Whatever else it says is why it ended."""

COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long one device waits for another in a step: while one of them computes features, it may be long. A process that
is gone is noticed at once, so this is for one that hangs."""

SHUTDOWN_SECONDS = 10.0
"""How long processes are given to end, and to say why they did."""

LOOPBACK = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


class PeerLostError(RuntimeError):
    """The other devices cannot be reached: one of them has ended."""


class WorkerError(RuntimeError):
    """Another device of the team could not go on; the message says which, and why."""


class WorkerLostError(RuntimeError):
    """A process of the team was lost without a word: killed, most likely. A new Run may go on from the checkpoint."""


@dataclass(frozen=True)
class BatchShard:
    """Which images of a batch a device takes."""

    place: slice
    weight: float
    """What the mean over its images counts for in the mean over the batch. Those of all devices add up to 1."""
    shared: bool
    """Whether the others have the rest of the batch."""


@dataclass(frozen=True)
class Rank:
    """One device's place in a team."""

    rank: int
    size: int
    sum_in_place: Callable[[Tensor], None]
    """Puts the sum of all devices' tensors into each of them; they must be alike in shape, and float32."""

    def shard_of(self, images: int) -> BatchShard:
        """This device's slice of a batch of so many images: all slices are alike in size, as far as can be.

        A batch with fewer images than there are devices is taken whole by all of them, and counts at the leader alone.
        So no device is ever without an image, and has its part in whatever the team does together.
        """
        if images < self.size or self.size == 1:
            return BatchShard(slice(0, images), float(self.rank == 0), shared=False)
        start, stop = images * self.rank // self.size, images * (self.rank + 1) // self.size
        return BatchShard(slice(start, stop), (stop - start) / images, shared=True)

    def all_reduce_many(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all devices, which give as many, of the same shapes.

        In one message, which takes as much memory again as the tensors do: after a step's way back there is room. Nor
        does it begin while gradients are still being computed, as it does in torch's DistributedDataParallel.

        Raises:
            PartedError: another device has ended.
        """
        if self.size == 1:
            return
        sums = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        self.all_reduce(sums)
        found = torch.split(sums, [tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [each.view_as(tensor) for each, tensor in zip(found, tensors, strict=True)])

    def all_gather(self, row: Tensor) -> Tensor:
        """The float32 rows [...] of all devices, in their order: [size, ...]."""
        rows = row.new_zeros(self.size, *row.shape)
        rows[self.rank] = row
        return self.all_reduce(rows)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The tensor, replaced by the sum over all devices."""
        try:
            self.sum_in_place(tensor)
        except RuntimeError as error:
            raise PeerLostError("another device of the team cannot be reached") from error
        return tensor


SINGLE_PROCESS = Rank(0, 1, lambda tensor: None)
"""The place of a device that trains by itself."""


def worker_device(leader: torch.device, rank: int) -> torch.device:
    """The device of a follower: the GPU so many after the leader's; a CPU they all share."""
    return leader if leader.type != "cuda" else torch.device("cuda", _index(leader) + rank)


def check_devices(leader: torch.device, size: int) -> None:
    """See that there are so many devices.

    Raises:
        ValueError: there are not.
    """
    if size < 1:
        raise ValueError(f"{size} devices: at least one is needed")
    if size == 1:
        return
    if leader.type not in ("cuda", "cpu"):
        raise ValueError(f"{size} devices: of kind {leader.type} a machine has one")
    if leader.type == "cuda":
        seen = torch.cuda.device_count() - _index(leader)
        if seen < size:
            raise ValueError(f"{size} devices, but from {leader} onwards this process sees {seen}")


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@contextlib.contextmanager
def join_process_group(folder: Path, rank: int, size: int, device: torch.device) -> Iterator[Rank]:
    """Join a team, and leave it at the end; waits until all have come.

    Args:
        folder: an empty one that all of the team know.
        rank: whose place it is, counted from 0, the leader's.
        size: how many there are.
        device: on which the tensors to be added up are.

    Raises:
        ValueError: this process takes part in something of torch.distributed already.
    """
    if distributed.is_initialized():
        raise ValueError(
            "this process takes part in something of torch.distributed already, so it cannot lead a team: train on one "
            "device, or in a process of its own"
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _inside_the_machine():
        distributed.init_process_group(
            backend,
            store=distributed.FileStore(str(folder / "meeting"), size),  # type: ignore[attr-defined]
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
            device_id=worker_device(device, 0)
            if device.type == "cuda"
            else None,  # NCCL meets here, not in the first step
        )
    try:
        yield Rank(rank, size, _add)
    finally:
        distributed.destroy_process_group()


def _add(tensor: Tensor) -> None:
    distributed.all_reduce(tensor)


@contextlib.contextmanager
def _inside_the_machine() -> Iterator[None]:
    """Let gloo and NCCL listen on the loopback interface alone: by themselves they take the first that they find."""
    names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
    os.environ.update(dict.fromkeys(names, LOOPBACK))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


def serialize(message: Mapping[str, Any]) -> bytes:
    """Plain data and tensors as bytes."""
    content = io.BytesIO()
    torch.save(dict(message), content)
    return content.getvalue()


def deserialize(content: bytes) -> dict[str, Any]:
    """What `serialize` was given, tensors on the CPU. Nothing but plain data and tensors is ever made of it."""
    message: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return message


class WorkerGroup:
    """The followers of this process, which leads.

    Starting them takes as long as importing torch and building the network. Close it, whatever happens; should this
    process be killed, they notice, and end too.

    Args:
        job: what `xfer.distributed.worker` needs to make the same Run, as plain data.
        device: the leader's.
        size: how many devices there are, the leader's included.

    Raises:
        FollowerError: a follower cannot make that Run.
        LostError: one was lost before it could say so.
    """

    def __init__(self, job: Mapping[str, Any], device: torch.device, size: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="xfer-team-"))
        self._device = device
        self._size = size
        self._followers: list[_Follower] = []
        self._lost = threading.Event()
        self._closing = False
        self._busy = True
        self._membership = contextlib.ExitStack()
        try:
            job = {**job, "size": size, "folder": str(self._folder)}
            for rank in range(1, size):
                place = {"rank": rank, "device": str(worker_device(device, rank))}
                self._followers.append(_Follower(rank, {**job, **place}, self._miss))
            for follower in self._followers:
                if (said := follower.hear()) != READY.decode():
                    raise self._why(said, follower)
            self.this_rank = self._membership.enter_context(join_process_group(self._folder, 0, size, device))
            self._busy = False
        except BaseException:
            self.close()
            raise

    @property
    def worker_pids(self) -> list[int]:
        """The followers' process ids."""
        return [follower.process.pid for follower in self._followers]

    def send_task(self, task: Mapping[str, Any]) -> None:
        """Let all followers begin with something that is done together with the leader, who says when it is `done`.

        Raises:
            FollowerError: a follower has ended, and said why.
            LostError: one has ended without a word.
        """
        self._busy = True
        content = serialize(task)
        for follower in self._followers:
            try:
                follower.connection.send_bytes(content)
            except OSError as error:
                self.raise_worker_error(error)

    def finish_task(self) -> None:
        """What was begun is done, by this process and, where nobody has ended, by all.

        Raises:
            FollowerError: a follower has ended, and said why.
            LostError: one has ended without a word.
        """
        if self._lost.is_set():
            self.raise_worker_error(None)
        self._busy = False

    def raise_worker_error(self, error: BaseException | None) -> None:
        """Raise in the place of an error what ended a follower, if one has ended; nothing happens where none has.

        Args:
            error: what came of it here. Where devices have parted, somebody must have ended.

        Raises:
            FollowerError: a follower has ended, and said why.
            LostError: one has ended without a word.
        """
        parted = isinstance(error, PeerLostError | OSError)
        if parted:
            self._lost.wait(SHUTDOWN_SECONDS)
        if not parted and not self._lost.is_set():
            return
        # Whoever was only left alone by the others says nothing; who ended first may need a moment longer than they.
        for seconds in (0.0, SHUTDOWN_SECONDS / 2):
            for follower in self._followers:
                if follower.has_ended(seconds) and (said := follower.hear()):
                    raise self._why(said, follower) from error
        gone = next((each for each in self._followers if each.has_ended(0.0)), self._followers[0])
        raise self._why("", gone) from error

    def close(self) -> None:
        """End the followers. Nothing of them is left when this returns."""
        self._closing = True
        if self._busy or self._lost.is_set():  # somewhere inside a step: nobody can be parted from in order
            for follower in self._followers:
                follower.process.kill()
            self._abort()
            with contextlib.suppress(RuntimeError):
                self._membership.close()
        # Otherwise they read that there is no more to come, and leave the team while this process does: with NCCL each
        # would wait for the other.
        for follower in self._followers:
            follower.connection.close()
        self._membership.close()
        for follower in self._followers:
            if not follower.has_ended(SHUTDOWN_SECONDS):
                follower.process.kill()
                follower.has_ended(SHUTDOWN_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _miss(self) -> None:
        """Called when a follower has ended."""
        if not self._closing:
            self._lost.set()
            self._abort()

    def _abort(self) -> None:
        # Gloo notices by itself. On a GPU this process may be waiting, for good, for a kernel of NCCL's to end.
        if self._device.type == "cuda" and distributed.is_initialized():
            with contextlib.suppress(Exception):  # two may come to this at the same time
                distributed.group.WORLD.abort()  # type: ignore[union-attr]

    def _why(self, said: str, follower: _Follower) -> WorkerError | WorkerLostError:
        which = f"device {follower.rank + 1} of {self._size}"
        follower.has_ended(SHUTDOWN_SECONDS)
        if said:
            return WorkerError(f"{which}: {said}")
        return WorkerLostError(f"the process on {which} was lost (exit status {follower.process.poll()})")


class _Follower:
    """A process that follows, as its leader sees it."""

    def __init__(self, rank: int, job: Mapping[str, Any], ended: Callable[[], None]) -> None:
        self.rank = rank
        ours, theirs = Pipe()
        self.connection = ours
        # Neither end is inherited by any other process, so each side reads an end where the other is gone.
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from xfer.distributed.worker import main; main({theirs.fileno()})"],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(each).absolute()) for each in sys.path)},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # an interrupt at the terminal is for the leader, who ends them
            )
        self._watch = threading.Thread(target=self._wait, args=(ended,), daemon=True, name=f"follower {rank}")
        self._watch.start()
        with contextlib.suppress(OSError):  # it has ended already, and will be heard not to be ready
            self.connection.send_bytes(serialize(job))

    def hear(self) -> str:
        """What it says next; nothing where it has ended."""
        try:
            return self.connection.recv_bytes().decode()
        except (EOFError, OSError):
            return ""

    def has_ended(self, seconds: float) -> bool:
        """Whether it has ended, or does within so many seconds."""
        self._watch.join(seconds)
        return not self._watch.is_alive()

    def _wait(self, ended: Callable[[], None]) -> None:
        self.process.wait()
        ended()
