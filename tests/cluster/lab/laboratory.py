"""A laboratory in which `ray up` is real and the machines are not: the tests' side of it.

What it is
    `cloud.py` is a cloud on this machine: a router, a private network, machines that are asked for over a socket, and
    desks in an office outside. Each machine is a host of its own (`host.sh`): network, processes, files and name are
    its own, and it has an SSH server. Cores, memory and clock are this machine's, and a GPU is a number that Ray is
    told. `image/` is what is installed on every host: Ray's way to the cloud (`namespace_provider.py`) and a witness
    of training (`sitecustomize.py`). `shipped.py` puts the cluster file that the project ships on these machines, and
    `cluster.py` gives the commands that a user gives, at the desk.

What it needs
    Root, Linux, and Debian's iproute2, nftables, openssh-server, openssh-client, rsync, procps, util-linux; without
    them its tests skip. No SSH server has to run on this machine. About 1 GB of memory for each host with Ray.

What a host sees
    The system, Python with its packages, what all hosts share, and no more: not the checkout, so that a job has what it
    was sent with and nothing else. It is /usr, /etc and so on of this machine, read-only; the rest is in memory.

Why nothing is left
    Cloud, bridges and hosts are in namespaces of the cloud's first process, which ends when its standard input does:
    when a test closes the laboratory, and just as when the tests are killed. The kernel clears away the rest. So two
    laboratories never meet, with the same addresses or not, and `ray stop`, which ends every Ray process that it can
    see, sees those of one host.

By hand
    `python -m pytest -m slow tests/cluster/test_lab.py` says in seconds whether it works here; each file can be run
    alone. A laboratory's folder, under pytest's temporary one, keeps what the cloud (`cloud.log`), every host
    (`HOST/log`) and every command (`said-NNN`) said.
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
"""On Python's path on every host, as if it had been installed there."""

TIMEOUT_SECONDS = 400
"""Seconds after which something counts as hung, on a machine that does other things too."""

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
"""The programs that it takes, and Debian's packages that they are in."""


def missing_requirements() -> str:
    """Why there can be no laboratory on this machine; empty where there can."""
    if os.geteuid() != 0:
        return "the laboratory makes namespaces and network cards, which takes root"
    packages = {package for program, package in REQUIRED_TOOLS.items() if shutil.which(program) is None}
    return f"the laboratory needs {', '.join(sorted(packages))}" if packages else ""


@dataclass(frozen=True)
class CommandResult:
    """What a command said, and how it ended."""

    status: int
    out: str
    """Both of its outputs, as they came."""


class Background:
    """A command that runs on a host while the test goes on."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path) -> None:
        self.process = process
        self._out = out

    @property
    def out(self) -> str:
        """What it has said so far."""
        return self._out.read_text(errors="replace")

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def end(self) -> CommandResult:
        """Wait for it to end by itself."""
        return CommandResult(self.process.wait(TIMEOUT_SECONDS), self.out)

    def kill(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Laboratory:
    """A cloud, and the desk of its user.

    Args:
        folder: an empty one, for keys, logs and the hosts' disks.
        shared: folders that every machine of the cloud sees at the same place, and may write to.
        seen: further ones that every machine may read.
        exports: environment variables of every shell on every host.
    """

    def __init__(
        self,
        folder: Path,
        shared: Iterable[Path] = (),
        seen: Iterable[Path] = (),
        exports: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.drawer = folder / "drawer"
        """The desk's own folder, for files that its user has."""
        self.drawer.mkdir()
        self.key = self.drawer / "key.pem"
        self._commands = 0
        for key in (self.key, folder / "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        # The checkout is on the user's desk alone: machines have Python and its packages, and what a job brings.
        python = [f"ro:{each}" for each in dict.fromkeys((sys.prefix, sys.base_prefix)) if each != "/usr"]
        both = [*python, f"ro:{IMAGE}"]
        machine = [*both, *(f"rw:{each}" for each in shared), *(f"ro:{each}" for each in seen)]
        path = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = {**(exports or {}), "PATH": path, "RAY_USAGE_STATS_ENABLED": "0"}
        variables["PYTHONPATH"] = ":".join([str(IMAGE), *filter(None, [(exports or {}).get("PYTHONPATH")])])
        told = {
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
        self._process.stdin.write(json.dumps(told).encode() + b"\n")
        self._process.stdin.flush()
        wait_until(lambda: (folder / "desk").exists(), "the cloud was there", explain=self.log)
        self._desk = socket.socket(socket.AF_UNIX)
        self._desk.connect(str(folder / "desk"))
        self._lines = self._desk.makefile("rw")
        # Who listens there, as this process counts.
        peer = self._desk.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid: int = struct.unpack("3i", peer)[0]
        self.user = self.ask("desk", name="user", number=1)

    def log(self) -> str:
        """What the cloud has said."""
        return (self.folder / "cloud.log").read_text()

    def ask(self, what: str, **said: Any) -> Any:
        """One request to the cloud (see the methods of `cloud.Cloud`)."""
        self._lines.write(json.dumps({"do": what, **said}) + "\n")
        self._lines.flush()
        answer = json.loads(self._lines.readline())
        assert "error" not in answer, answer["error"]
        return answer["is"]

    def machines(self, state: str = "running", kind: str = "") -> dict[str, Any]:
        """The cloud's machines in one state, and of one kind where it is given."""
        found = self.ask("describe").items()
        return {name: each for name, each in found if each["state"] == state and kind in ("", each["kind"])}

    def events(self, *what: str) -> list[dict[str, Any]]:
        """What has happened to the cloud's machines: all of it, or of some kinds."""
        return [each for each in self.ask("events") if not what or each["what"] in what]

    def inside(self, host: dict[str, Any] | None, command: str) -> list[str]:
        """What runs a shell command on a host, or with None in the cloud itself, between the hosts."""
        cloud = ["nsenter", "--target", str(self.pid), "--all", "--"]
        if host is None:
            return [*cloud, "bash", "-c", command]
        shell = ["env", "-i", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "PATH=/usr/bin:/bin", "bash", "-c"]
        return [*cloud, "nsenter", "--target", str(host["pid"]), "--all", "--", *shell, f". ~/.bashrc; {command}"]

    def start(self, host: dict[str, Any] | None, command: str) -> Background:
        """Start a shell command there."""
        self._commands += 1
        # A file, for ssh leaves a process behind that would hold a pipe open.
        out = self.folder / f"said-{self._commands:03d}"
        with out.open("wb") as written:
            process = subprocess.Popen(
                self.inside(host, command), stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT
            )
        return Background(process, out)

    def run(self, host: dict[str, Any] | None, command: str, expect_failure: bool = False) -> str:
        """Run a shell command there to its end; what it said. It must end well, unless it `fails`."""
        said = self.start(host, command).end()
        assert expect_failure or said.status == 0, f"{command}: status {said.status}\n{said.out[-5000:]}"
        return said.out

    def close(self) -> None:
        """End the cloud, and with it whatever runs in it."""
        self._process.kill()  # which kills the cloud's first process, and that whatever is in its namespaces
        self._process.wait()
        self._lines.close()
        self._desk.close()
        wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), "the cloud had ended")

    def __enter__(self) -> Laboratory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_until(seen: Callable[[], Any], what: str, explain: Callable[[], str] = str) -> Any:
    """Whatever `seen` finds first, asked often."""
    limit = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < limit:
        if found := seen():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not seen in {TIMEOUT_SECONDS} s: {what}\n{explain()[-5000:]}")
