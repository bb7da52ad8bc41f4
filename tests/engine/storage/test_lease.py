"""The lease: two drivers never work on one sweep, and a dead one keeps nobody waiting."""

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

from sweeps.engine.storage import json_objects, lease
from sweeps.engine.storage.lease import Lease, LeaseHeldError, lease_holder


def left(folder: Path, **changes: Any) -> None:
    """A lease that somebody has left."""
    held = {"holder": "f" * 32, "host": socket.gethostname(), "pid": os.getpid(), "expires": time.time() + 50}
    json_objects.replace(folder / "lease.json", {**held, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*"))


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_driver_is_refused_and_told_who_and_until_when(tmp_path: Path) -> None:
    sweep = tmp_path / "colours"
    with Lease(sweep):
        with pytest.raises(LeaseHeldError) as refused, Lease(sweep):
            pytest.fail("two drivers")
        message = str(refused.value)
        assert f"at work on colours: process {os.getpid()} on {socket.gethostname()}" in message
        assert "ends 60 s from now" in message or "ends 59 s from now" in message
        assert names(sweep) == ["lease.json"]


def test_the_refused_one_leaves_the_holders_lease_alone(tmp_path: Path) -> None:
    with Lease(tmp_path):
        before = (tmp_path / "lease.json").read_bytes()
        with pytest.raises(LeaseHeldError), Lease(tmp_path):
            pass
        assert (tmp_path / "lease.json").read_bytes() == before
        assert list(tmp_path.glob("*.new")) == list(tmp_path.glob("*.old")) == []


def test_it_is_given_back_at_the_end(tmp_path: Path) -> None:
    with Lease(tmp_path):
        assert lease_holder(tmp_path) is not None
    assert names(tmp_path) == []
    with Lease(tmp_path):
        pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_also_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Lease(tmp_path):
        raise error
    assert names(tmp_path) == []


def test_a_dead_drivers_lease_on_this_host_is_taken_over_at_once(tmp_path: Path, dead_pid: int) -> None:
    left(tmp_path, pid=dead_pid)
    assert lease_holder(tmp_path) is None
    with Lease(tmp_path):
        held = lease_holder(tmp_path)
        assert held is not None
        assert held["pid"] == os.getpid()
        assert names(tmp_path) == ["lease.json"]


def test_an_expired_lease_is_taken_over_wherever_it_was(tmp_path: Path) -> None:
    left(tmp_path, host="elsewhere", expires=time.time() - 1)
    with Lease(tmp_path):
        assert (lease_holder(tmp_path) or {})["host"] == socket.gethostname()


def test_another_hosts_unexpired_lease_is_respected(tmp_path: Path, dead_pid: int) -> None:
    left(tmp_path, host="elsewhere", pid=dead_pid)
    with pytest.raises(LeaseHeldError, match=f"process {dead_pid} on elsewhere"), Lease(tmp_path):
        pass
    assert (lease_holder(tmp_path) or {})["host"] == "elsewhere"


def test_a_live_process_on_this_host_is_respected(tmp_path: Path) -> None:
    left(tmp_path, pid=os.getppid())
    with pytest.raises(LeaseHeldError), Lease(tmp_path):
        pass


def test_another_users_process_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    left(tmp_path)
    monkeypatch.setattr(os, "kill", forbidden)
    with pytest.raises(LeaseHeldError), Lease(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b'{"holder": "ff', b"{}", b"null", b"[]", b'{"expires": "soon"}'], ids=repr)
def test_a_damaged_lease_is_nobodys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lease.json").write_bytes(content)
    assert lease_holder(tmp_path) is None
    with Lease(tmp_path):
        assert lease_holder(tmp_path) is not None


def test_it_is_renewed_in_the_background(tmp_path: Path) -> None:
    with Lease(tmp_path, seconds=0.6, renew_seconds=0.05):
        first = json.loads((tmp_path / "lease.json").read_bytes())["expires"]
        deadline = time.monotonic() + 5
        while json.loads((tmp_path / "lease.json").read_bytes())["expires"] < first + 0.7:
            assert time.monotonic() < deadline, "it was never renewed"
            time.sleep(0.02)
        with pytest.raises(LeaseHeldError), Lease(tmp_path):
            pass


def test_a_full_disk_does_not_end_the_renewing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full(path: Path, value: Any) -> None:
        calls.append(path)
        raise OSError(28, "No space left on device")

    with Lease(tmp_path, renew_seconds=0.02), monkeypatch.context() as patched:
        patched.setattr(json_objects, "replace", full)
        deadline = time.monotonic() + 5
        while len(calls) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert names(tmp_path) == []


def test_who_lost_it_does_not_give_back_or_renew_the_next_ones(tmp_path: Path) -> None:
    with Lease(tmp_path, renew_seconds=0.02):
        left(tmp_path, host="elsewhere")
        time.sleep(0.1)
        assert (lease_holder(tmp_path) or {})["host"] == "elsewhere"
    assert (lease_holder(tmp_path) or {})["host"] == "elsewhere"


def test_the_files_of_other_work_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    left(tmp_path, expires=0)
    with Lease(tmp_path):
        pass
    assert names(tmp_path) == ["plan.json"]


# --- races -----------------------------------------------------------------------------------------------------------


def expired(folder: Path) -> None:
    left(folder, expires=0)


def absent(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


@pytest.mark.parametrize("before", [absent, expired])
def test_of_many_threads_that_race_exactly_one_wins(tmp_path: Path, before: Callable[[Path], None]) -> None:
    for number in range(15):
        folder = tmp_path / str(number)
        before(folder)
        start, end = threading.Barrier(6), threading.Barrier(6)
        won: list[int] = []

        def driver(me: int, folder: Path, start: threading.Barrier, end: threading.Barrier, won: list[int]) -> None:
            start.wait()
            try:
                with Lease(folder):
                    won.append(me)
                    end.wait()
            except LeaseHeldError:
                end.wait()

        threads = [threading.Thread(target=driver, args=(me, folder, start, end, won)) for me in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


RACE = """
import os, sys, time
from pathlib import Path
from sweeps.engine.storage.lease import HeldError, Lease
print("ready", flush=True)
at = float(sys.stdin.readline())
for number in range(int(sys.argv[2])):
    time.sleep(max(0, at + 0.2 * number - time.time()))
    tried = Path(sys.argv[1]) / f"tried-{number}"
    tried.mkdir(exist_ok=True)
    try:
        with Lease(Path(sys.argv[1]) / str(number)):
            print(number, flush=True)
            (tried / str(os.getpid())).touch()
            while len(list(tried.iterdir())) < 2:
                time.sleep(0.01)
    except HeldError:
        (tried / str(os.getpid())).touch()
"""


def test_of_two_processes_that_race_exactly_one_wins_in_every_round(tmp_path: Path) -> None:
    rounds = 12
    for number in range(rounds):
        (expired if number % 2 else absent)(tmp_path / str(number))
    command = [sys.executable, "-c", RACE, str(tmp_path), str(rounds)]
    drivers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for driver in drivers:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
    at = time.time() + 0.2
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write(f"{at}\n")
        driver.stdin.flush()
    said = [driver.communicate(timeout=60)[0].split() for driver in drivers]
    assert sorted(said[0] + said[1], key=int) == [str(number) for number in range(rounds)]


def test_who_saw_an_old_lease_does_not_take_away_the_new_one_of_somebody_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expired(tmp_path)
    quicker, slower, alive = Lease(tmp_path), Lease(tmp_path), lease._alive
    order = threading.Event()
    seen: list[bool] = []

    def look(held: dict[str, Any]) -> bool:
        found = alive(held)
        if not seen:  # the slower one has seen that the lease is nobody's, and is held up before it acts on it
            seen.append(found)
            racing.start()
            order.wait(0.5)
        return found

    def race() -> None:
        try:
            quicker.__enter__()
        except LeaseHeldError:
            entered.append(False)
        else:
            entered.append(True)
        order.set()

    entered: list[bool] = []
    racing = threading.Thread(target=race)
    monkeypatch.setattr(lease, "_alive", look)
    try:
        slower.__enter__()
    except LeaseHeldError:
        slower_in = False
    else:
        slower_in = True
    racing.join()
    try:
        assert [slower_in, *entered].count(True) == 1
    finally:
        for each, inside in ((slower, slower_in), (quicker, entered[0])):
            if inside:
                each.__exit__(None, None, None)
