"""A machine that nothing uses shuts itself down; one that is in use, being set up or looked at does not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from sweeps.cluster import idle_shutdown
from sweeps.cluster.idle_shutdown import decide, find_uses, unfinished_jobs
from tests.cluster.lab.laboratory import Laboratory, wait_until

SCRIPT = Path(idle_shutdown.__file__)
RAYLET = ["/home/ubuntu/.xfer/venv/lib/python3.12/site-packages/ray/core/src/ray/raylet/raylet", "--node-name=1"]
LISTENER = ["sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"]
MLFLOW = ["python", "-m", "sweeps.cluster", "mlflow", "--artifacts", "s3://results/mlartifacts"]
IDLE = [["/sbin/init"], LISTENER, ["-bash"], MLFLOW, ["ray::IDLE"], ["tmux", "new", "-d", "python -m sweeps.folder"]]
"""Command lines that are found on machines without work."""


# --- what counts as use ----------------------------------------------------------------------------------------------


def test_only_a_worker_without_a_raylet_is_idle() -> None:
    assert find_uses([*IDLE, RAYLET], is_head=False, jobs=[], keep_running=False) == ["a raylet"]
    assert find_uses(IDLE, is_head=False, jobs=[], keep_running=False) == []
    assert find_uses([*IDLE, ["vim", "raylet"]], is_head=False, jobs=[], keep_running=False) == []


def test_a_head_is_idle_although_ray_runs_there() -> None:
    assert find_uses([*IDLE, RAYLET, ["ray::DashboardAgent"]], is_head=True, jobs=[], keep_running=False) == []


@pytest.mark.parametrize("is_head", [True, False])
@pytest.mark.parametrize(
    "title",
    ["sshd: ubuntu@pts/0", "sshd: ubuntu@notty", "sshd: ubuntu", "sshd-session: ubuntu@pts/1", "sshd: me.too@pts/0  "],
)
def test_an_ssh_connection_counts_on_every_machine_during_set_up_logins_and_tunnels(title: str, is_head: bool) -> None:
    assert find_uses([*IDLE, [title]], is_head, [], False) == ["an SSH connection"]


@pytest.mark.parametrize(
    "title", ["sshd: ubuntu [priv]", "sshd: [accepted]", "sshd: unknown [net]", "sshd: root [net]", "/usr/sbin/sshd -D"]
)
def test_an_attempt_to_connect_does_not_count(title: str) -> None:
    assert find_uses([*IDLE, [title]], True, [], False) == []


@pytest.mark.parametrize(
    "command",
    [
        "python -m sweeps.stanford_cars --data s3://results/cars",
        "/home/ubuntu/.xfer/venv/bin/python3.12 -u -m sweeps.folder --data photos",
        "python sweeps/quickdraw.py",
        "python -m xfer train --data photos",
        "/home/ubuntu/.xfer/venv/bin/python /home/ubuntu/.xfer/venv/bin/sweeps folder --data photos",
        "python -m sweeps sync RUN",
    ],
)
def test_a_sweep_counts_even_before_it_connects_to_ray(command: str) -> None:
    assert find_uses([*IDLE, command.split()], True, None, False) == [command[:80]]


def test_an_unfinished_job_or_driver_counts_and_so_does_the_wish_of_the_user() -> None:
    assert find_uses(IDLE, True, ["raysubmit_1", "02000000"], False) == ["Ray job raysubmit_1", "Ray job 02000000"]
    assert find_uses(IDLE, True, [], True) == ["the file ~/.xfer/keep_running"]


def test_if_rays_jobs_are_unknown_its_busy_processes_count() -> None:
    busy = [["ray::JobSupervisor"], ["ray::IDLE_SpillWorker"], ["ray::RuntimeEnvAgent"]]
    assert find_uses([*IDLE, *busy], True, None, False) == ["ray::JobSupervisor"]
    assert find_uses([*IDLE, *busy], True, [], False) == []


# --- how long --------------------------------------------------------------------------------------------------------


def test_the_idle_time_begins_with_the_first_idle_check_and_again_after_each_use() -> None:
    since, ended, shut_down = None, [], False
    for minute, uses in enumerate([["x"], [], [], ["x"], [], [], [], []]):
        since, shut_down = decide(uses, since, minute * 60.0, 180.0)
        ended.append(shut_down)
    assert ended == [False] * 7 + [True]


def test_a_limit_of_0_never_ends_a_machine() -> None:
    assert decide([], 0.0, 1e9, 0.0) == (0.0, False)


# --- Ray's Jobs API --------------------------------------------------------------------------------------------------

JOBS = [
    {"type": "SUBMISSION", "submission_id": "raysubmit_a", "job_id": "02000000", "status": "RUNNING"},
    {"type": "SUBMISSION", "submission_id": "raysubmit_b", "job_id": None, "status": "PENDING"},
    {"type": "SUBMISSION", "submission_id": "raysubmit_c", "job_id": None, "status": "FAILED"},
    {"type": "DRIVER", "submission_id": None, "job_id": "03000000", "status": "RUNNING"},
    {"type": "DRIVER", "submission_id": None, "job_id": "04000000", "status": "SUCCEEDED"},
]


@dataclass
class JobsApi:
    """A stand-in for the dashboard that answers requests with the token."""

    url: str
    answer: Any
    requests: int = 0


@pytest.fixture
def jobs_api() -> Iterator[JobsApi]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.requests += 1
            body = json.dumps(api.answer).encode()
            self.send_response(200 if self.headers["Authorization"] == "Bearer a token" else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    api = JobsApi(f"http://127.0.0.1:{server.server_port}/api/jobs/", JOBS)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield api
    server.shutdown()
    server.server_close()


def test_unfinished_jobs_and_drivers_are_read_from_ray_with_the_token(tmp_path: Path, jobs_api: JobsApi) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("a token\n", encoding="utf-8")
    assert unfinished_jobs(tmp_path, jobs_api.url) == ["raysubmit_a", "raysubmit_b", "03000000"]
    jobs_api.answer = []
    assert unfinished_jobs(tmp_path, jobs_api.url) == []


@pytest.mark.parametrize("answer", [{"error": 1}, None, ["text"], [{"type": "DRIVER"}]])
def test_without_a_usable_answer_jobs_are_unknown(tmp_path: Path, jobs_api: JobsApi, answer: Any) -> None:
    assert unfinished_jobs(tmp_path, jobs_api.url) is None  # no token
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("another", encoding="utf-8")
    assert unfinished_jobs(tmp_path, jobs_api.url) is None
    (tmp_path / ".ray/auth_token").write_text("a token", encoding="utf-8")
    jobs_api.answer = answer
    assert unfinished_jobs(tmp_path, jobs_api.url) is None
    assert jobs_api.requests == 2
    assert unfinished_jobs(tmp_path, "http://127.0.0.1:9/api/jobs/") is None


# --- the script as the timer runs it, in a folder that looks like a machine -------------------------------------------


@dataclass
class Machine:
    """A folder with the files that the script reads, and programs that write down how they were called."""

    root: Path

    def __post_init__(self) -> None:
        for folder in ("proc/sys/kernel/random", "run/systemd/system", "etc/systemd/system", "bin", "home/.xfer"):
            (self.root / folder).mkdir(parents=True)
        self.reboot("first")
        for program in ("shutdown", "systemctl"):
            path = self.root / "bin" / program
            path.write_text(f'#!/bin/sh\necho "{program} $*" >> {self.root}/called\n', encoding="utf-8")
            path.chmod(0o755)

    def reboot(self, boot: str) -> None:
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"{boot}\n", encoding="utf-8")

    def start(self, number: int, *words: str) -> None:
        (self.root / f"proc/{number}").mkdir()
        (self.root / f"proc/{number}/cmdline").write_bytes("".join(f"{word}\0" for word in words).encode())

    def run(self, action: str, *flags: str, minutes: float = 1e-6, hours: float = 0.0) -> str:
        words = ["--home", self.root / "home", "--worker-minutes", minutes, "--head-hours", hours, "--root", self.root]
        command = [sys.executable, "-I", SCRIPT, action, *words, *flags]
        environment = {"PATH": f"{self.root}/bin:{os.environ['PATH']}"}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def called(self) -> list[str]:
        file = self.root / "called"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def test_a_worker_without_ray_shuts_down_at_the_first_check_after_the_limit(machine: Machine) -> None:
    machine.start(1, "/sbin/init")
    machine.start(2)  # a kernel thread has no command line
    assert "has been idle for 0 minutes" in machine.run("check")
    assert machine.called == []
    machine.run("check")
    assert machine.called == ["shutdown -h now xfer: nothing has used this worker for 1e-06 minutes"]


def test_a_worker_with_ray_runs_on(machine: Machine) -> None:
    machine.start(7, *RAYLET)
    for _ in range(3):
        assert machine.run("check") == "This worker is in use: a raylet\n"
    assert machine.called == []


def test_the_file_keep_running_keeps_a_machine_and_removing_it_starts_the_idle_time(machine: Machine) -> None:
    (machine.root / "home/.xfer/keep_running").touch()
    machine.run("check")
    machine.run("check")
    (machine.root / "home/.xfer/keep_running").unlink()
    machine.run("check")
    assert machine.called == []
    machine.run("check")
    assert len(machine.called) == 1


def test_a_dry_run_only_reports(machine: Machine) -> None:
    machine.run("check")
    assert "it shuts down after" in machine.run("check", "--dry-run")
    assert machine.called == []


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"boot": "first"}', '{"boot": "first", "checked": -1e9, "idle_since": 0}']
)
def test_a_damaged_or_old_note_starts_the_idle_time_again(machine: Machine, note: str) -> None:
    (machine.root / "run/xfer-idle-shutdown.json").write_text(note, encoding="utf-8")
    machine.run("check")
    assert machine.called == []
    machine.run("check")
    assert len(machine.called) == 1


def test_a_restart_of_the_machine_starts_the_idle_time_again(machine: Machine) -> None:
    machine.run("check")
    machine.reboot("second")
    machine.run("check")
    assert machine.called == []


def test_a_head_has_its_own_limit(machine: Machine) -> None:
    (machine.root / "home/ray_bootstrap_config.yaml").touch()
    assert "This head has been idle for 0 minutes; it does not shut down" in machine.run("check", hours=0)
    machine.run("check", hours=0)
    assert machine.called == []
    machine.run("check", hours=1e-9)
    assert len(machine.called) == 1


def test_installing_starts_a_timer_whose_service_runs_the_check_and_repeating_it_changes_the_limits(
    machine: Machine,
) -> None:
    for minutes in (30, 45):
        machine.run("install", minutes=minutes, hours=12)
    start = ["daemon-reload", "enable xfer-idle-shutdown.timer", "restart xfer-idle-shutdown.timer"]
    assert machine.called == [f"systemctl {words}" for words in start * 2]
    units = machine.root / "etc/systemd/system"
    service = (units / "xfer-idle-shutdown.service").read_text(encoding="utf-8")
    [command] = [line.removeprefix("ExecStart=") for line in service.splitlines() if line.startswith("ExecStart=")]
    limits = ["--home", str(machine.root / "home"), "--worker-minutes", "45", "--head-hours", "12"]
    script = machine.root / "opt/xfer/idle_shutdown.py"
    assert shlex.split(command) == [sys.executable, "-I", str(script), "check", *limits]
    assert script.read_bytes() == SCRIPT.read_bytes()  # a copy: the project's folder may be replaced at any time
    assert "OnUnitActiveSec=1min" in (units / "xfer-idle-shutdown.timer").read_text(encoding="utf-8")


def test_both_limits_0_stop_the_timer_of_an_earlier_installation(machine: Machine) -> None:
    assert machine.run("install", minutes=0) == "This machine does not shut down by itself\n"
    assert machine.called == []
    machine.run("install", minutes=30, hours=12)
    machine.run("install", minutes=0)
    assert machine.called[-1] == "systemctl disable --now xfer-idle-shutdown.timer"


def test_a_machine_without_systemd_is_left_as_it_is(machine: Machine) -> None:
    (machine.root / "run/systemd/system").rmdir()
    assert "does not run systemd" in machine.run("install", minutes=30)
    assert machine.called == []


# --- with real processes and a real SSH server ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.nightly
def test_on_a_host_of_the_laboratory_a_raylet_and_connections_count_and_then_it_shuts_down(
    can_have_a_laboratory: None, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    (shared / "bin").mkdir(parents=True)
    (shared / "bin/shutdown").write_text(f'#!/bin/sh\necho "$*" > {shared}/called\n', encoding="utf-8")
    (shared / "bin/shutdown").chmod(0o755)
    (tmp_path / "lab").mkdir()
    with Laboratory(tmp_path / "lab", [shared], [SCRIPT.parent]) as lab:
        lab.ask("create", cluster="c", node_config={}, tags={"ray-user-node-type": "worker"}, count=1)
        wait_until(lambda: lab.machines(), "the machine ran", lab.log)
        [host] = lab.machines().values()
        check = f"PATH={shared}/bin:$PATH python -I {SCRIPT} check --home /root --worker-minutes 1e-6 --head-hours 0"

        def checked() -> str:
            return lab.run(host, check)

        lab.run(host, "cp $(command -v sleep) /tmp/raylet")
        assert "has been idle" in checked()
        raylet = lab.start(host, "exec /tmp/raylet 600")
        wait_until(lambda: "a raylet" in checked(), "the raylet counted", checked)
        ssh = f"ssh -i {lab.key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@{host['public']}"
        for command in (f"{ssh} sleep 600", f"{ssh} -N -L 5000:127.0.0.1:5000", f"{ssh} -tt sleep 600"):
            lab.start(lab.user, command)
            wait_until(lambda: "an SSH connection" in checked(), f"{command} counted", checked)
            lab.run(lab.user, "for each in $(ps -o pid= -C ssh); do kill $each; done")
            wait_until(lambda: checked() == "This worker is in use: a raylet\n", "the connection ended", checked)
        assert not (shared / "called").exists()
        lab.run(host, "kill $(ps -o pid= -C raylet)")
        raylet.end()
        wait_until(lambda: checked() and (shared / "called").exists(), "it shut down", checked)
        assert (shared / "called").read_text(encoding="utf-8").startswith("-h now xfer: nothing has used this worker")
