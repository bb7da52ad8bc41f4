"""Shuts a machine of a cluster down when nothing uses it: a worker that has lost Ray, or a head without work.

    sudo python3 idle_shutdown.py install --home "$HOME" --worker-minutes 30 --head-hours 12
    sudo python3 idle_shutdown.py check --home "$HOME" --worker-minutes 30 --head-hours 12 [--dry-run]

`install` copies this file and starts a systemd timer that runs `check` every minute as root. `check` notes since when
the machine has been idle, and shuts it down once the limit is reached. 0 means never. A machine is in use while

- a worker's raylet runs;
- there is an SSH connection: a login, `ray exec`, the tunnel of `make ui` or `ray dashboard`, or the set-up by Ray;
- a sweep or `python -m xfer` runs, connected to Ray or not;
- on the head, a Ray job or driver has not ended;
- the file ~/.xfer/keep_running exists.

The cluster files copy this file to every machine. It runs with the system's Python and uses only its standard library.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from urllib.request import ProxyHandler, Request, build_opener

UNIT = "xfer-idle-shutdown"
"""Name of the systemd service and timer."""

JOBS_URL = "http://127.0.0.1:8265/api/jobs/"
"""Ray's Jobs API on the head, which lists submitted jobs and all other drivers."""

UNFINISHED = ("PENDING", "RUNNING")
"""States of a Ray job or driver that has not ended."""

SSH_CONNECTION = re.compile(r"sshd(-session)?: [\w.-]+(@\S+)?")
"""Title of the process of an authenticated SSH connection, such as `sshd: ubuntu@pts/0` or `sshd: ubuntu`."""

MAX_CHECK_GAP_SECONDS = 600.0
"""Time between two checks after which the machine may have been in use unseen, so that the idle time starts again."""

RAY_BACKGROUND = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Beginnings of the titles of Ray's processes that run no task and no actor."""

SERVICE = """[Unit]
Description=Shut this machine down when nothing uses it

[Service]
Type=oneshot
ExecStart={command}
"""
TIMER = """[Unit]
Description=Check every minute whether anything uses this machine

[Timer]
OnBootSec=2min
OnUnitActiveSec=1min

[Install]
WantedBy=timers.target
"""


def decide(uses: list[str], idle_since: float | None, now: float, limit_seconds: float) -> tuple[float | None, bool]:
    """Return since when the machine has been idle, and whether to shut it down now.

    >>> decide(["a raylet"], 100.0, 5000.0, 1800.0)
    (None, False)
    >>> decide([], None, 5000.0, 1800.0)
    (5000.0, False)
    >>> decide([], 5000.0, 6800.0, 1800.0)
    (5000.0, True)

    Args:
        uses: what uses the machine.
        idle_since: when the machine was first seen idle, in seconds since boot; None if it was in use.
        now: seconds since boot.
        limit_seconds: idle time after which the machine shuts down; 0 for never.
    """
    if uses:
        return None, False
    since = now if idle_since is None else idle_since
    return since, limit_seconds > 0 and now - since >= limit_seconds


def find_uses(commands: list[list[str]], is_head: bool, jobs: list[str] | None, keep_running: bool) -> list[str]:
    """Return a description of everything that uses the machine.

    Args:
        commands: the command line of every process.
        is_head: whether the machine is the head of its cluster.
        jobs: ids of Ray jobs and drivers that have not ended; None if the head's Ray did not answer.
        keep_running: whether the user wants the machine to run on.
    """
    uses = ["the file ~/.xfer/keep_running"] if keep_running else []
    programs = [Path(words[0]).name for words in commands]
    if not is_head and "raylet" in programs:
        uses.append("a raylet")
    if any(SSH_CONNECTION.fullmatch(" ".join(words).strip()) for words in commands):
        uses.append("an SSH connection")
    uses += [" ".join(words)[:80] for words in commands if is_driver(words)]
    if is_head and jobs is None:
        titles = [words[0] for words in commands if words[0].startswith("ray::")]
        uses += [title for title in titles if not title.startswith(RAY_BACKGROUND)]
    return uses + [f"Ray job {job}" for job in jobs or ()]


def is_driver(words: list[str]) -> bool:
    """Return whether a command line is that of a sweep or of `xfer`; the MLflow server of `sweeps.cluster` is neither.

    >>> is_driver(["python", "-m", "sweeps.folder", "--data", "photos"]), is_driver(["python", "/venv/bin/sweeps"])
    (True, True)
    >>> is_driver(["python", "-m", "sweeps.cluster", "mlflow"]), is_driver(["tmux", "new", "python -m sweeps.folder"])
    (False, False)
    """
    modules = [module for flag, module in pairwise(words) if flag == "-m"][:1]
    if modules:
        return modules[0].split(".")[0] in ("sweeps", "xfer") and not modules[0].startswith("sweeps.cluster")
    scripts = [Path(word) for word in words[:2]]
    return any(script.name in ("sweeps", "xfer") for script in scripts) or any(
        script.suffix == ".py" and script.parent.name == "sweeps" for script in scripts
    )


def read_commands(proc: Path) -> list[list[str]]:
    """Return the command line of every process; kernel threads have none.

    Args:
        proc: where /proc is mounted.
    """
    commands = []
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        if any(words):
            commands.append(words[:-1] if words[-1] == "" else words)
    return [words for words in commands if words[0]]


def unfinished_jobs(home: Path, url: str = JOBS_URL) -> list[str] | None:
    """Return the ids of Ray jobs and drivers on this head that have not ended; None if Ray does not answer.

    Args:
        home: home directory of the user who started Ray; it holds the token.
        url: address of the Jobs API.
    """
    try:
        token = (home / ".ray" / "auth_token").read_text(encoding="utf-8").strip()
        request = Request(url, headers={"Authorization": f"Bearer {token}"})
        with build_opener(ProxyHandler({})).open(request, timeout=20) as response:
            jobs = json.load(response)
        return [job.get("submission_id") or job.get("job_id") for job in jobs if job["status"] in UNFINISHED]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # no token, no Ray, or another answer
        return None


def check(home: Path, worker_minutes: float, head_hours: float, root: Path, dry_run: bool) -> None:
    """Print what uses the machine, note since when it has been idle, and shut it down if that was long enough ago."""
    is_head = (home / "ray_bootstrap_config.yaml").exists()  # `ray up` writes it to the head only
    limit = head_hours * 3600 if is_head else worker_minutes * 60
    jobs = unfinished_jobs(home) if is_head else []
    uses = find_uses(read_commands(root / "proc"), is_head, jobs, (home / ".xfer" / "keep_running").exists())
    boot = (root / "proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    note = root / "run" / f"{UNIT}.json"
    now = time.monotonic()
    since, shut_down = decide(uses, _idle_since(note, boot, now), now, limit)
    kind = "head" if is_head else "worker"
    if uses:
        print(f"This {kind} is in use: {'; '.join(uses)}")
    else:
        limit_text = f"it shuts down after {limit / 60:g}" if limit else "it does not shut down by itself"
        print(f"This {kind} has been idle for {(now - (since or now)) / 60:.0f} minutes; {limit_text}")
    if dry_run:
        return
    note.write_text(json.dumps({"boot": boot, "checked": now, "idle_since": since}), encoding="utf-8")
    if shut_down:
        reason = f"nothing has used this {kind} for {limit / 60:g} minutes"
        subprocess.run(["shutdown", "-h", "now", f"xfer: {reason}"], check=True)


def _idle_since(note: Path, boot: str, now: float) -> float | None:
    """Return the time that the previous check noted, unless the machine or the timer was stopped in between."""
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        is_recent = noted["boot"] == boot and 0 <= now - noted["checked"] < MAX_CHECK_GAP_SECONDS
        return noted["idle_since"] if is_recent else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def install(home: Path, worker_minutes: float, head_hours: float, root: Path) -> None:
    """Start the timer with these limits, or stop it if both are 0. Repeating the command replaces the limits."""
    if not (root / "run/systemd/system").is_dir():
        print("This machine does not run systemd, so it does not shut down by itself")
        return
    units = root / "etc/systemd/system"
    script = root / "opt/xfer/idle_shutdown.py"
    if worker_minutes <= 0 and head_hours <= 0:
        if (units / f"{UNIT}.timer").exists():
            subprocess.run(["systemctl", "disable", "--now", f"{UNIT}.timer"], check=True)
        print("This machine does not shut down by itself")
        return
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(__file__, script)
    limits = f"--home {home} --worker-minutes {worker_minutes:g} --head-hours {head_hours:g}"
    command = f"{sys.executable} -I {script} check {limits}"
    (units / f"{UNIT}.service").write_text(SERVICE.format(command=command), encoding="utf-8")
    (units / f"{UNIT}.timer").write_text(TIMER, encoding="utf-8")
    for arguments in (["daemon-reload"], ["enable", f"{UNIT}.timer"], ["restart", f"{UNIT}.timer"]):
        subprocess.run(["systemctl", *arguments], check=True)
    print(f"Idle machines shut down: a worker after {worker_minutes:g} minutes, the head after {head_hours:g} hours")


def main() -> None:
    """Run the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("action", choices=["install", "check"])
    parser.add_argument("--home", type=Path, required=True, help="home directory of the user who runs Ray")
    parser.add_argument("--worker-minutes", type=float, required=True, help="idle time of a worker; 0: never shut down")
    parser.add_argument("--head-hours", type=float, required=True, help="idle time of the head; 0: never shut down")
    parser.add_argument("--dry-run", action="store_true", help="with check: only print")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the system's folders are")
    options = parser.parse_args()
    if options.action == "install":
        install(options.home, options.worker_minutes, options.head_hours, options.root)
    else:
        check(options.home, options.worker_minutes, options.head_hours, options.root, options.dry_run)


if __name__ == "__main__":
    main()
