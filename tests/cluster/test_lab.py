"""The laboratory itself, without Ray: what its machines can reach, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.lab.laboratory import ROOT, Laboratory, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.usefixtures("can_have_a_laboratory")]


def ask_for_machines(lab: Laboratory, count: int) -> list[dict[str, str]]:
    before = len(lab.machines())
    lab.ask("create", cluster="c", node_config={}, tags={"ray-user-node-type": "worker"}, count=count)
    wait_until(lambda: len(lab.machines()) == before + count, "the machines ran", lab.log)
    return list(lab.machines().values())[before:]


def reaches(lab: Laboratory, host: dict[str, str], address: str, port: int = 22) -> bool:
    probe = f"timeout 1 bash -c 'exec 3<>/dev/tcp/{address}/{port}' && echo yes"
    return "yes" in lab.run(host, probe, expect_failure=True)


def processes_in(namespaces: set[str]) -> list[int]:
    """The ids of all processes in some network namespaces."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            if str(path.readlink()) in namespaces:
                pids.append(int(path.parts[2]))
        except OSError:  # it has ended meanwhile
            continue
    return pids


def namespaces_of(lab: Laboratory) -> set[str]:
    """The network namespaces of a laboratory: that of the cloud and those of its hosts."""
    return set(lab.run(None, "readlink /proc/[0-9]*/ns/net", expect_failure=True).split())


def test_machines_reach_each_other_but_no_other_network(lab: Laboratory) -> None:
    one, two = ask_for_machines(lab, 2)
    assert reaches(lab, one, two["address"])
    assert reaches(lab, two, one["address"])
    assert "unreachable" in lab.run(one, "exec 3<>/dev/tcp/198.51.100.1/80", expect_failure=True)


def test_a_machine_sees_the_system_and_shared_folders_but_not_the_checkout(lab: Laboratory) -> None:
    (one,) = ask_for_machines(lab, 1)
    assert lab.run(one, "python -c 'import ray, torch.version; print(ray.__version__)'").strip()
    assert "No such file" in lab.run(one, f"ls {ROOT}/sweeps", expect_failure=True)
    assert "No such file" in lab.run(one, "ls /home", expect_failure=True)
    assert "Read-only" in lab.run(one, "touch /usr/mine /etc/mine", expect_failure=True)


def test_only_ssh_and_only_from_the_user_is_admitted(lab: Laboratory) -> None:
    (one,) = ask_for_machines(lab, 1)
    lab.start(one, "python -m http.server 8000")
    wait_until(lambda: reaches(lab, one, one["address"], 8000), "it served")
    stranger = lab.ask("desk", name="stranger", number=2)
    assert [reaches(lab, lab.user, one["public"], port) for port in (22, 8000)] == [True, False]
    assert [reaches(lab, stranger, one["public"], port) for port in (22, 8000)] == [False, False]
    assert not reaches(lab, lab.user, one["address"])  # nothing outside reaches the private network


def test_a_disconnected_machine_keeps_running_and_an_interrupted_one_is_gone(lab: Laboratory) -> None:
    one, two = ask_for_machines(lab, 2)
    names = {each["address"]: name for name, each in lab.machines().items()}
    lab.ask("cut", machine=names[one["address"]])
    assert not reaches(lab, two, one["address"])
    assert lab.run(one, "hostname").startswith("host-")
    lab.ask("interrupt", machine=names[two["address"]])
    assert two["address"] not in [each["address"] for each in lab.machines().values()]
    wait_until(lambda: not _exists(lab, two["pid"]), "its power was off")


def test_two_laboratories_with_the_same_addresses_are_isolated(lab: Laboratory, tmp_path: Path) -> None:
    with Laboratory(tmp_path) as other:
        (one,) = ask_for_machines(other, 1)
        assert one["address"] == "10.77.0.1"
        assert reaches(other, other.user, one["public"])
        assert namespaces_of(lab).isdisjoint(namespaces_of(other))
        assert len(other.machines()) == 1


def test_a_closed_laboratory_leaves_nothing_behind(tmp_path: Path) -> None:
    with Laboratory(tmp_path) as other:
        ask_for_machines(other, 2)
        namespaces = namespaces_of(other)
        assert len(namespaces) == 4  # of the cloud, the desk and two machines
        assert processes_in(namespaces)
    wait_until(lambda: not processes_in(namespaces), "all its processes had ended")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_laboratory_whose_tests_are_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    script = f"""
import pathlib, time
from tests.cluster.lab.laboratory import Laboratory
from tests.cluster.test_lab import ask_for_machines, namespaces_of
lab = Laboratory(pathlib.Path({str(tmp_path)!r}))
ask_for_machines(lab, 1)
print(*namespaces_of(lab), flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tests = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert tests.stdout is not None
    namespaces = set(tests.stdout.readline().split())
    assert len(namespaces) == 3
    assert processes_in(namespaces)
    tests.send_signal(signal.SIGKILL)
    tests.wait()
    tests.stdout.close()
    wait_until(lambda: not processes_in(namespaces), "all its processes had ended")


def _exists(lab: Laboratory, pid: object) -> bool:
    return "exists" in lab.run(None, f"test -e /proc/{pid} && echo exists", expect_failure=True)
