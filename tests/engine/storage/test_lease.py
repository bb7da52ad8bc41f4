"""The lease: two drivers never work on one sweep, and the lease of a killed driver is taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine.storage import json_objects
from sweeps.engine.storage.lease import Lease, LeaseHeldError, is_unused, lease_holder


def write_lease(folder: Path, **changes: Any) -> None:
    """Write a lease of another driver, by default on this host."""
    lease = {"holder": "f" * 32, "host": socket.gethostname(), "pid": os.getpid(), "expires": time.time() + 50}
    json_objects.replace(folder / "lease.json", {**lease, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_driver_is_refused_with_process_and_host(tmp_path: Path) -> None:
    sweep = tmp_path / "colours"
    with Lease(sweep):
        with pytest.raises(LeaseHeldError) as refused, Lease(sweep):
            pytest.fail("two drivers")
        message = str(refused.value)
        assert f"at work on colours: process {os.getpid()} on {socket.gethostname()}" in message
        assert "its lease ends with the process" in message
        assert names(sweep) == ["lease.json"]


def test_a_refused_driver_does_not_change_the_lease(tmp_path: Path) -> None:
    with Lease(tmp_path):
        before = (tmp_path / "lease.json").read_bytes()
        with pytest.raises(LeaseHeldError), Lease(tmp_path):
            pass
        assert (tmp_path / "lease.json").read_bytes() == before
        assert list(tmp_path.glob("*.new")) == list(tmp_path.glob("*.old")) == []


def test_the_lease_is_released_at_the_end(tmp_path: Path) -> None:
    with Lease(tmp_path):
        assert lease_holder(tmp_path) is not None
    assert names(tmp_path) == []
    with Lease(tmp_path):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_lease_is_released_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Lease(tmp_path):
        raise error
    assert names(tmp_path) == []


def test_the_lease_of_a_killed_driver_on_this_host_is_taken_over_at_once(tmp_path: Path, dead_pid: int) -> None:
    write_lease(tmp_path, pid=dead_pid)
    assert lease_holder(tmp_path) is None
    with Lease(tmp_path):
        assert (lease_holder(tmp_path) or {})["pid"] == os.getpid()
        assert names(tmp_path) == ["lease.json"]


def test_an_expired_lease_of_another_host_is_taken_over(tmp_path: Path) -> None:
    write_lease(tmp_path, host="elsewhere", expires=time.time() - 1)
    with Lease(tmp_path):
        assert (lease_holder(tmp_path) or {})["host"] == socket.gethostname()


def test_an_active_lease_of_another_host_is_respected(tmp_path: Path, dead_pid: int) -> None:
    write_lease(tmp_path, host="elsewhere", pid=dead_pid)
    with pytest.raises(LeaseHeldError, match=f"process {dead_pid} on elsewhere"), Lease(tmp_path):
        pass
    assert (lease_holder(tmp_path) or {})["host"] == "elsewhere"


def test_the_lease_of_a_running_process_on_this_host_is_respected(tmp_path: Path) -> None:
    write_lease(tmp_path, pid=os.getppid())
    with pytest.raises(LeaseHeldError), Lease(tmp_path):
        pass


def test_a_process_of_another_user_counts_as_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, signal: int) -> None:
        raise PermissionError

    write_lease(tmp_path)
    monkeypatch.setattr(os, "kill", forbidden)
    with pytest.raises(LeaseHeldError), Lease(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b'{"holder": "ff', b"{}", b"null", b"[]", b'{"expires": "soon"}'], ids=repr)
def test_a_damaged_lease_is_held_until_its_holder_would_have_repaired_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lease.json"
    path.write_bytes(content)
    with (
        pytest.raises(LeaseHeldError, match=r"lease.json is damaged, so another driver may be at work"),
        Lease(tmp_path),
    ):
        pass
    assert path.read_bytes() == content
    os.utime(path, (time.time() - 61, time.time() - 61))
    assert lease_holder(tmp_path) is None
    with Lease(tmp_path):
        assert (lease_holder(tmp_path) or {})["pid"] == os.getpid()


def test_the_lease_is_renewed_in_the_background(tmp_path: Path) -> None:
    with Lease(tmp_path, seconds=0.6, renew_seconds=0.05):
        first = json.loads((tmp_path / "lease.json").read_bytes())["expires"]
        deadline = time.monotonic() + 5
        while json.loads((tmp_path / "lease.json").read_bytes())["expires"] < first + 0.7:
            assert time.monotonic() < deadline, "the lease was never renewed"
            time.sleep(0.02)
        with pytest.raises(LeaseHeldError), Lease(tmp_path):
            pass


def test_renewal_continues_after_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def disk_full(path: Path, value: Any) -> None:
        attempts.append(path)
        raise OSError(28, "No space left on device")

    with Lease(tmp_path, renew_seconds=0.02), monkeypatch.context() as patched:
        patched.setattr(json_objects, "replace", disk_full)
        deadline = time.monotonic() + 5
        while len(attempts) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert names(tmp_path) == []


def test_a_driver_that_lost_the_lease_does_not_renew_or_release_the_next_one(tmp_path: Path) -> None:
    with Lease(tmp_path, renew_seconds=0.02):
        write_lease(tmp_path, host="elsewhere")
        time.sleep(0.1)
        assert (lease_holder(tmp_path) or {})["host"] == "elsewhere"
    assert (lease_holder(tmp_path) or {})["host"] == "elsewhere"


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    write_lease(tmp_path, expires=0)
    with Lease(tmp_path):
        pass
    assert names(tmp_path) == ["plan.json"]


# --- races -----------------------------------------------------------------------------------------------------------


def expired(folder: Path) -> None:
    write_lease(folder, expires=0)


def absent(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


@pytest.mark.parametrize("prepare", [absent, expired])
def test_exactly_one_of_many_racing_threads_wins(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    for number in range(15):
        folder = tmp_path / str(number)
        prepare(folder)
        start, end = threading.Barrier(6), threading.Barrier(6)
        winners: list[int] = []

        def driver(
            index: int, folder: Path, start: threading.Barrier, end: threading.Barrier, winners: list[int]
        ) -> None:
            start.wait()
            try:
                with Lease(folder):
                    winners.append(index)
                    end.wait()
            except LeaseHeldError:
                end.wait()

        threads = [threading.Thread(target=driver, args=(index, folder, start, end, winners)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(winners) == 1


RACE = """
import os, sys, time
from pathlib import Path
from sweeps.engine.storage.lease import LeaseHeldError, Lease
print("ready", flush=True)
start = float(sys.stdin.readline())
for number in range(int(sys.argv[2])):
    time.sleep(max(0, start + 0.2 * number - time.time()))
    tried = Path(sys.argv[1]) / f"tried-{number}"
    tried.mkdir(exist_ok=True)
    try:
        with Lease(Path(sys.argv[1]) / str(number)):
            print(number, flush=True)
            (tried / str(os.getpid())).touch()
            while len(list(tried.iterdir())) < 2:
                time.sleep(0.01)
    except LeaseHeldError:
        (tried / str(os.getpid())).touch()
"""


def test_exactly_one_of_two_racing_processes_wins_in_every_round(tmp_path: Path) -> None:
    rounds = 12
    for number in range(rounds):
        (expired if number % 2 else absent)(tmp_path / str(number))
    command = [sys.executable, "-c", RACE, str(tmp_path), str(rounds)]
    drivers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for driver in drivers:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
    start = time.time() + 0.2
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write(f"{start}\n")
        driver.stdin.flush()
    won = [driver.communicate(timeout=60)[0].split() for driver in drivers]
    assert sorted(won[0] + won[1], key=int) == [str(number) for number in range(rounds)]


def test_a_driver_that_read_an_expired_lease_does_not_take_the_new_one_of_a_faster_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired(tmp_path)
    faster, slower, read = Lease(tmp_path), Lease(tmp_path), json_objects.read
    faster_done = threading.Event()
    entered: dict[str, bool] = {}

    def enter(name: str, lease: Lease) -> None:
        try:
            lease.__enter__()
        except LeaseHeldError:
            entered[name] = False
        else:
            entered[name] = True

    def race() -> None:
        enter("faster", faster)
        faster_done.set()

    racer = threading.Thread(target=race)

    def delayed_read(path: Path) -> dict[str, Any]:
        lease = read(path)
        if racer.ident is None:  # the slower driver has read the expired lease, and is delayed before it takes it
            racer.start()
            faster_done.wait(0.5)
        return lease

    monkeypatch.setattr(json_objects, "read", delayed_read)
    enter("slower", slower)
    racer.join()
    try:
        assert sorted(entered.values()) == [False, True]
    finally:
        for name, lease in (("faster", faster), ("slower", slower)):
            if entered[name]:
                lease.__exit__(None, None, None)


# --- folders of starts that wrote nothing -----------------------------------------------------------------------------


def test_a_start_that_writes_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with Lease(tmp_path / "colours"):
        assert not is_unused(tmp_path / "colours")
    assert not (tmp_path / "colours").exists()
    assert is_unused(tmp_path / "colours")


def test_a_start_that_writes_something_keeps_its_folder(tmp_path: Path) -> None:
    with Lease(tmp_path / "colours"):
        (tmp_path / "colours" / "plan.json").write_text("{}", encoding="utf-8")
    assert names(tmp_path / "colours") == ["plan.json"]
    assert not is_unused(tmp_path / "colours")


def test_what_a_killed_first_start_leaves_is_unused(tmp_path: Path, dead_pid: int) -> None:
    (tmp_path / ".lease.lock").touch()
    assert is_unused(tmp_path)
    write_lease(tmp_path, pid=dead_pid)
    assert is_unused(tmp_path)
    write_lease(tmp_path)
    assert not is_unused(tmp_path)


def test_drivers_that_start_and_end_at_the_same_time_never_hold_the_lease_together(tmp_path: Path) -> None:
    """The folder is removed and created again all the time, which must not give two drivers a lock each."""
    holders: list[int] = []
    most: list[int] = []

    def start_and_end(number: int) -> None:
        for _ in range(60):
            try:
                with Lease(tmp_path / "colours"):
                    holders.append(number)
                    most.append(len(holders))
                    holders.remove(number)
            except LeaseHeldError:
                pass

    threads = [threading.Thread(target=start_and_end, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert not (tmp_path / "colours").exists()
