"""The cloud of the laboratory: a network with hosts, and a desk from which machines are requested and terminated.

It runs as the first process of its own namespaces, so bridges, hosts and all their processes end with it. It ends when
its standard input does, so nothing outlives the tests, even if they are killed.

    python cloud.py FOLDER        reads its settings as a JSON line from standard input

Networks:

    office  192.0.2.0/24      desks: that of the user (.1) and that of a stranger (.2)
    public  203.0.113.N       public address of machine N; the router forwards what the security group admits
    private 10.77.0.0/24      machine N; .254 is the router, with the services of the cloud
"""

from __future__ import annotations

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PRIVATE, OFFICE, PUBLIC = "10.77.0", "192.0.2", "203.0.113"
ROUTER = 254
USER, STRANGER = 1, 2
PORT = 8900
MACHINES = 60
HERE = Path(__file__).parent

FIREWALL = f"""
table ip cloud {{
  chain public_addresses {{
    type nat hook prerouting priority dstnat;
{chr(10).join(f"    ip daddr {PUBLIC}.{each} dnat to {PRIVATE}.{each}" for each in range(1, MACHINES + 1))}
  }}
  chain security_group {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname private accept
    iifname office ct status dnat ip saddr {OFFICE}.{USER} tcp dport 22 accept
  }}
}}
"""
"""A security group that admits SSH from the address of the user. Machines always reach each other."""


@dataclass
class Machine:
    """A host, from the moment it is requested."""

    number: int
    name: str
    address: str
    public: str = ""
    cluster: str = ""
    kind: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    node_config: dict[str, Any] = field(default_factory=dict)
    state: str = "pending"
    pid: int = 0
    """Id of its first process, in the numbering of the cloud."""

    @property
    def network_interface(self) -> str:
        """Name of its network interface on the bridge."""
        return f"{self.name}-{self.number}"


class Cloud:
    """The requests that the cloud answers; arguments and results are plain data."""

    def __init__(self, folder: Path, keep: dict[str, list[str]], bashrc: str) -> None:
        self._folder = folder
        self._keep = keep
        self._bashrc = bashrc
        self._machines: dict[str, Machine] = {}
        self._desks: dict[str, Machine] = {}
        self._events: list[dict[str, Any]] = []
        self._began = time.monotonic()
        self._lock = threading.RLock()

    # Requests of a node provider.

    def create(self, cluster: str, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """Boot `count` machines; they are `pending` at first."""
        created = {}
        with self._lock:
            for _ in range(count):
                number = len(self._machines) + 1
                address, public = f"{PRIVATE}.{number}", f"{PUBLIC}.{number}"
                kind = tags.get("ray-user-node-type", "")
                machine = Machine(number, "host", address, public, cluster, kind, dict(tags), node_config)
                name = f"i-{number:04d}"
                self._machines[name] = created[name] = machine
                self._note("created", name)
                threading.Thread(target=self._start, args=(name,), daemon=True).start()
            return {name: asdict(machine) for name, machine in created.items()}

    def describe(self, cluster: str = "") -> dict[str, Any]:
        """Every machine that ever existed, of one cluster or of all."""
        with self._lock:
            machines = self._machines.items()
            return {name: asdict(each) for name, each in machines if cluster in ("", each.cluster)}

    def tag(self, machine: str, tags: dict[str, str]) -> None:
        """Add tags to a machine."""
        with self._lock:
            self._machines[machine].tags.update(tags)

    def terminate(self, machine: str) -> None:
        """Terminate a machine."""
        self._end(machine, "terminated")

    # Requests of the tests.

    def interrupt(self, machine: str) -> None:
        """Terminate a machine without warning, as a cloud does with spot machines."""
        self._end(machine, "interrupted")

    def cut(self, machine: str) -> None:
        """Disconnect a machine from the network; it keeps running, and the cloud does not notice."""
        with self._lock:
            _run("ip", "link", "set", self._machines[machine].network_interface, "down")
            self._note("cut", machine)

    def desk(self, name: str, number: int) -> dict[str, Any]:
        """Start a computer in the office."""
        machine = Machine(number, name, f"{OFFICE}.{number}", kind=name)
        self._desks[name] = machine
        self._boot(machine, "office", f"{OFFICE}.{ROUTER}")
        return asdict(machine)

    def events(self) -> list[dict[str, Any]]:
        """The events of all machines, in order."""
        with self._lock:
            return list(self._events)

    def _start(self, name: str) -> None:
        machine = self._machines[name]
        self._boot(machine, "private", f"{PRIVATE}.{ROUTER}")
        with self._lock:
            if machine.state == "pending":
                machine.state = "running"
                self._note("running", name)
            else:  # terminated meanwhile
                _kill(machine.pid)

    def _end(self, name: str, how: str) -> None:
        with self._lock:
            machine = self._machines[name]
            if machine.state == "terminated":
                return
            machine.state = "terminated"
            self._note(how, name)
            if machine.pid:
                _kill(machine.pid)

    def _note(self, what: str, name: str) -> None:
        machine = self._machines[name]
        seconds = round(time.monotonic() - self._began, 1)
        event = {"seconds": seconds, "what": what, "machine": name, "kind": machine.kind, "address": machine.address}
        self._events.append(event)
        print(json.dumps(event), flush=True)

    def _boot(self, machine: Machine, bridge: str, gateway: str) -> None:
        folder = self._folder / machine.network_interface
        folder.mkdir()
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{machine.address} {machine.network_interface}\n")
        (folder / "bashrc").write_text(self._bashrc)
        for name, source in (("authorized_keys", "drawer/key.pem.pub"), ("host_key", "host_key")):
            (folder / name).write_bytes((self._folder / source).read_bytes())
        keep = self._keep["desk" if bridge == "office" else "machine"]
        namespaces = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child")
        init = ["bash", str(HERE / "host.sh"), machine.network_interface, machine.address, gateway, str(folder), *keep]
        with (folder / "log").open("wb") as log:
            first = subprocess.Popen(
                ["unshare", *namespaces, *init],
                env={"PATH": os.environ["PATH"], "HOME": "/root", "LANG": "C.UTF-8"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert first.stdin is not None
        assert first.stdout is not None
        pid = int(first.stdout.readline())
        _run("ip", "link", "add", machine.network_interface, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _run("ip", "link", "set", machine.network_interface, "master", bridge, "up")
        first.stdin.write("\n")
        first.stdin.close()
        threading.Thread(target=first.wait, daemon=True).start()
        machine.pid = pid
        _wait_for_ssh(machine.address)


def _wait_for_ssh(address: str) -> None:
    for _ in range(400):
        try:
            socket.create_connection((address, 22), timeout=1).close()
        except OSError:
            time.sleep(0.025)
        else:
            return
    print(f"{address} does not answer", flush=True)


def _kill(pid: int) -> None:
    """Kill the first process of a host, and with it all others."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _run(*command: str, stdin: str | None = None) -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def _create_networks() -> None:
    _run("ip", "link", "set", "lo", "up")
    for bridge, network in (("private", PRIVATE), ("office", OFFICE)):
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "address", "add", f"{network}.{ROUTER}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    _run("nft", "-f", "-", stdin=FIREWALL)


class _Requests(socketserver.StreamRequestHandler):
    """Answers one request per line: {"do": METHOD, ...} with {"is": ...} or {"error": ...}."""

    cloud: Cloud

    def handle(self) -> None:
        for line in self.rfile:
            request = json.loads(line)
            try:
                answer = {"is": getattr(self.cloud, request.pop("do"))(**request)}
            except Exception as error:  # sent to the client
                answer = {"error": f"{type(error).__name__}: {error}"}
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class _OverTheNetwork(socketserver.ThreadingTCPServer):
    daemon_threads = allow_reuse_address = True


class _OnThisMachine(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def main(folder: Path) -> None:
    """Run the cloud until standard input ends."""
    _Requests.cloud = Cloud(folder, **json.loads(sys.stdin.readline()))
    _create_networks()
    for server in (_OverTheNetwork(("", PORT), _Requests), _OnThisMachine(str(folder / "desk"), _Requests)):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
