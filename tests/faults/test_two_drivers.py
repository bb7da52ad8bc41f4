"""Fault 10: two drivers resume the same sweep. The second is refused as long as the process of the first exists."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeps.engine.storage import json_objects, lease
from sweeps.engine.storage.lease import Lease, LeaseHeldError, lease_holder

DRIVER = """
import sys, time
from pathlib import Path
from sweeps.engine.storage.lease import Lease
lost = []
with Lease(Path(sys.argv[1]), seconds=2, renew_seconds=0.2, on_lost=lambda: lost.append(1)):
    print("holds", flush=True)
    while not lost:
        time.sleep(0.05)
print("lost", flush=True)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


def change_lease(folder: Path, **changes: Any) -> None:
    """Write other values into a lease."""
    json_objects.replace(folder / "lease.json", {**json_objects.read(folder / "lease.json"), **changes})


def assert_held(folder: Path, message: str = "another driver is at work") -> None:
    with pytest.raises(LeaseHeldError, match=message), Lease(folder):
        pass


def test_a_suspended_driver_keeps_its_lease_until_it_is_killed(tmp_path: Path, driver: subprocess.Popen[str]) -> None:
    """Ctrl-Z, a debugger or a closed lid stop the renewal, and the process wakes up later."""
    driver.send_signal(signal.SIGSTOP)
    change_lease(tmp_path, expires=time.time() - 3600)
    assert_held(tmp_path, rf"process {driver.pid} on .*its lease ends with the process")
    assert (lease_holder(tmp_path) or {})["pid"] == driver.pid
    driver.send_signal(signal.SIGCONT)
    wait_until(lambda: json_objects.read(tmp_path / "lease.json")["expires"] > time.time())
    assert_held(tmp_path)
    driver.kill()  # its exit status is not read, as in a container without an init process
    wait_until(lambda: lease_holder(tmp_path) is None)
    with Lease(tmp_path):
        assert (lease_holder(tmp_path) or {})["pid"] == os.getpid()


@pytest.mark.parametrize("jump", [61.0, 86_400.0, -86_400.0])
def test_a_clock_that_jumps_does_not_free_the_lease(
    tmp_path: Path, driver: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    assert_held(tmp_path)


def test_the_holder_repairs_a_damaged_lease_and_one_removed_by_hand(
    tmp_path: Path, driver: subprocess.Popen[str]
) -> None:
    (tmp_path / "lease.json").write_bytes(b"{")
    assert_held(tmp_path, "is damaged|another driver is at work")
    wait_until(lambda: (lease_holder(tmp_path) or {}).get("pid") == driver.pid)
    (tmp_path / "lease.json").unlink()
    wait_until(lambda: (lease_holder(tmp_path) or {}).get("pid") == driver.pid)


def test_a_driver_whose_folder_is_removed_notices_it_and_does_not_create_it_again(
    tmp_path: Path, driver: subprocess.Popen[str]
) -> None:
    shutil.rmtree(tmp_path)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "lost\n"
    assert not tmp_path.exists()


def test_a_driver_that_wakes_after_another_has_run_and_ended_does_not_take_the_lease_back(tmp_path: Path) -> None:
    lost = threading.Event()
    with Lease(tmp_path, seconds=0.01, renew_seconds=0.2, on_lost=lost.set):
        (tmp_path / "lease.json").unlink()  # as the other driver did at its end
        assert lost.wait(5)
        assert not (tmp_path / "lease.json").exists()


def test_a_process_that_only_has_the_id_of_the_holder_does_not_hold_the_lease(tmp_path: Path) -> None:
    content = Lease(tmp_path)._content()
    json_objects.replace(tmp_path / "lease.json", {**content, "holder": "f" * 32, "started": "1"})
    with Lease(tmp_path):
        pass


def test_a_lease_of_this_machine_before_a_restart_or_of_one_with_its_name_expires(tmp_path: Path) -> None:
    other = {**Lease(tmp_path)._content(), "holder": "f" * 32, "machine": "other boot"}
    json_objects.replace(tmp_path / "lease.json", other)
    assert_held(tmp_path, r"unless renewed, its lease expires in \d+ s")
    change_lease(tmp_path, expires=time.time() - 1)
    with Lease(tmp_path):
        pass


def test_a_lease_of_an_earlier_version_is_judged_as_before(tmp_path: Path) -> None:
    old = {"holder": "f" * 32, "host": socket.gethostname(), "pid": os.getpid(), "expires": time.time() + 50}
    json_objects.replace(tmp_path / "lease.json", old)
    assert_held(tmp_path)
    change_lease(tmp_path, expires=time.time() - 1)
    with Lease(tmp_path):
        pass


def test_without_a_process_file_system_processes_are_told_apart_by_ps(monkeypatch: pytest.MonkeyPatch) -> None:
    started = lease._start_of(os.getpid())
    assert started.isdigit()
    monkeypatch.setattr(lease, "Path", lambda path: Path("/nowhere") / "none")
    by_ps = lease._start_of(os.getpid())
    assert by_ps == "" if shutil.which("ps") is None else json.dumps(by_ps) != '""'


def wait_until(done: Any, seconds: float = 10.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)
