"""The tests' side of a laboratory in which `ray up` is real and the machines are simulated.

What it is
    `cloud.py` is a cloud on this machine: a router, a private network, machines that are requested over a socket, and
    desks in an office outside. Each machine is a separate host (`host.sh`) with its own network, processes, files, name
    and SSH server. It shares the cores, memory and clock of this machine, and a GPU is only a number that Ray is told.
    `image/` is installed on every host: Ray's node provider (`namespace_provider.py`) and an observer of training
    (`sitecustomize.py`). `cluster_file.py` adapts the shipped cluster file to these machines, and `cluster.py` runs
    the commands of a user at the desk.

What it needs
    Root, Linux, and Debian's iproute2, nftables, openssh-server, openssh-client, rsync, procps, util-linux; without
    them its tests skip. This machine need not run an SSH server. Each host with Ray takes about 1 GB of memory.

What a host sees
    The system, Python with its packages, and the shared folders, but not the checkout: a job has only the files that it
    was submitted with. /usr, /etc and the like are those of this machine, read-only; the rest is in memory.

Why nothing is left
    Cloud, bridges and hosts are in namespaces of the cloud's first process, which ends when its standard input does:
    when a test closes the laboratory, and also when the tests are killed. The kernel removes the rest. Laboratories are
    isolated from each other even with the same addresses, and `ray stop`, which ends every Ray process that it sees,
    sees those of one host.

By hand
    `python -m pytest -m nightly tests/cluster/test_lab.py` shows in seconds whether it works here. The folder of a
    laboratory, under pytest's temporary folder, keeps the output of the cloud (`cloud.log`), of every host (`HOST/log`)
    and of every command (`output-NNN`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
IMAGE = HERE / "image"
"""Folder on the Python path of every host, as if it were installed there."""

TIMEOUT_SECONDS = 400
"""Timeout of every wait; generous, because the machine may be busy."""

REQUIRED_TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "/usr/sbin/sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "unshare": "util-linux",
    "ss": "iproute2",
    "ps": "procps",
}
"""Programs that are needed, and the Debian package of each."""


def missing_requirements() -> str:
    """Why this machine cannot run a laboratory; empty if it can."""
    if os.geteuid() != 0:
        return "the laboratory creates namespaces and network interfaces, which needs root"
    packages = {package for program, package in REQUIRED_TOOLS.items() if shutil.which(program) is None}
    return f"the laboratory needs {', '.join(sorted(packages))}" if packages else ""


@dataclass(frozen=True)
class CommandResult:
    """Exit status and output of a command."""

    status: int
    out: str
    """Standard output and standard error, interleaved."""


class Background:
    """A command that runs on a host in the background."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        self.process = process
        self._out = out

    @property
    def out(self) -> str:
        """Its output so far."""
        return self._out.read_text(errors="replace")

    def is_running(self) -> bool:
        """Whether it is still running."""
        return self.process.poll() is None

    def end(self) -> CommandResult:
        """Wait until it ends."""
        return CommandResult(self.process.wait(TIMEOUT_SECONDS), self.out)

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


class Laboratory:
    """A cloud, and the desk of its user.

    Args:
        folder: Empty folder for keys, logs and the disks of the hosts.
        shared: Folders that every machine sees at the same path and may write to.
        readable: Further folders that every machine may read.
        exports: Environment variables of every shell on every host.
    """

    def __init__(
        self,
        folder: Path,
        shared: Iterable[Path] = (),
        readable: Iterable[Path] = (),
        exports: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.drawer = folder / "drawer"
        """The folder of the desk, for the files of its user."""
        self.drawer.mkdir()
        self.key = self.drawer / "key.pem"
        self._commands = 0
        for key in (self.key, folder / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        # Only the desk has the checkout: machines have Python and its packages, and the files of a job.
        python = [f"ro:{each}" for each in dict.fromkeys((sys.prefix, sys.base_prefix)) if each != "/usr"]
        both = [*python, f"ro:{IMAGE}"]
        machine = [*both, *(f"rw:{each}" for each in shared), *(f"ro:{each}" for each in readable)]
        path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = {**(exports or {}), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
        variables["PYTHONPATH"] = ":".join([str(IMAGE), *filter(None, [(exports or {}).get("PYTHONPATH")])])
        settings = {
            "keep": {"machine": machine, "desk": [f"ro:{ROOT}", *both, f"rw:{self.drawer}"]},
            "bashrc": "".join(f"export {name}='{value}'\n" for name, value in variables.items()),
        }
        namespaces = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        with (folder / "cloud.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["unshare", *namespaces, sys.executable, "-I", HERE / "cloud.py", folder],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings).encode() + b"\n")
        self._process.stdin.flush()
        wait_until(lambda: (folder / "desk").exists(), "the cloud had started", explain=self.log)
        self._desk = socket.socket(socket.AF_UNIX)
        self._desk.connect(str(folder / "desk"))
        self._lines = self._desk.makefile("rw")
        # The process that listens there, in the numbering of this process.
        peer = self._desk.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid: int = struct.unpack("3i", peer)[0]
        self.user = self.ask("desk", name="user", number=1)

    def log(self) -> str:
        """The output of the cloud."""
        return (self.folder / "cloud.log").read_text()

    def ask(self, request: str, **arguments: Any) -> Any:
        """Send a request to the cloud (see the methods of `cloud.Cloud`) and return its answer."""
        self._lines.write(json.dumps({"do": request, **arguments}) + "\n")
        self._lines.flush()
        answer = json.loads(self._lines.readline())
        assert "error" not in answer, answer["error"]
        return answer["is"]

    def machines(self, state: str = "running", kind: str = "") -> dict[str, Any]:
        """The machines of the cloud in one state, and of one kind if given."""
        found = self.ask("describe").items()
        return {name: each for name, each in found if each["state"] == state and kind in ("", each["kind"])}

    def events(self, *what: str) -> list[dict[str, Any]]:
        """What has happened to the cloud's machines: all of it, or of some kinds."""
        return [each for each in self.ask("events") if not what or each["what"] in what]

    def inside(self, host: dict[str, Any] | None, command: str) -> list[str]:
        """The command line that runs a shell command on a host, or with None in the cloud itself, between the hosts."""
        cloud = ["nsenter", "--target", str(self.pid), "--all", "--"]
        if host is None:
            return [*cloud, "bash", "-c", command]
        shell = ["env", "-i", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "PATH=/usr/bin:/bin", "bash", "-c"]
        return [*cloud, "nsenter", "--target", str(host["pid"]), "--all", "--", *shell, f". ~/.bashrc; {command}"]

    def start(self, host: dict[str, Any] | None, command: str) -> Background:
        """Start a shell command on a host, or with None in the cloud itself."""
        self._commands += 1
        # A file, because ssh leaves a process behind that would hold a pipe open.
        out = self.folder / f"output-{self._commands:03d}"
        with out.open("wb") as output:
            process = subprocess.Popen(
                self.inside(host, command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        return Background(process, out)

    def run(self, host: dict[str, Any] | None, command: str, expect_failure: bool = False) -> str:
        """Run a shell command to its end and return its output; it must succeed unless `expect_failure`."""
        result = self.start(host, command).end()
        assert expect_failure or result.status == 0, f"{command}: status {result.status}\n{result.out[-5000:]}"
        return result.out

    def close(self) -> None:
        """End the cloud and everything that runs in it."""
        self._process.kill()  # kills the first process of the cloud, and with it everything in its namespaces
        self._process.wait()
        self._lines.close()
        self._desk.close()
        wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), "the cloud had ended")

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_until(condition: Callable[[], Any], what: str, explain: Callable[[], str] = str) -> Any:
    """Poll `condition` and return its first true result; fail with `explain()` after TIMEOUT_SECONDS."""
    limit = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < limit:
        if result := condition():
            return result
        time.sleep(0.1)
    raise AssertionError(f"not seen in {TIMEOUT_SECONDS} s: {what}\n{explain()[-5000:]}")
