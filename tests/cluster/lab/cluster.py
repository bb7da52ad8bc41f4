"""A Ray cluster in the laboratory, used as a user would: every command runs at the desk of the user."""

from __future__ import annotations

import json
import shlex
from typing import Any

import yaml

from tests.cluster.lab.cluster_file import WORKER, lab_cluster_config, project_folder
from tests.cluster.lab.laboratory import ROOT, Background, Laboratory, wait_until

DASHBOARD = "http://127.0.0.1:8265"
FAST_RAY_SETTINGS = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "200000000",
    # Each host sees the memory of this machine, other programs included, and would kill its processes when it is low.
    "RAY_memory_monitor_refresh_ms": "0",
    # Replaces `pip install -e`.
    "PYTHONPATH": project_folder(),
}
"""Settings that make the hosts of the laboratory fast and small; none of them belongs in a cluster file."""

HTTP_REQUEST_SCRIPT = """
import json, pathlib, sys, urllib.request
url, body = sys.argv[1], sys.argv[2]
token = pathlib.Path.home().joinpath(".ray/auth_token").read_text().strip()
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
request = urllib.request.Request(url, data=body.encode() or None, headers=headers)
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).read().decode())
"""


class Cluster:
    """A cluster that `ray_cluster.yaml` describes.

    Args:
        lab: The cloud and the desk.
        storage: Replaces `s3://{bucket}`.
        settings: Further arguments of `lab_cluster_config`.
    """

    def __init__(self, lab: Laboratory, storage: str, **settings: Any) -> None:
        self.lab = lab
        self.file = lab.drawer / "cluster.yaml"
        self.file.write_text(yaml.safe_dump(lab_cluster_config(lab.key, storage, **settings), sort_keys=False))
        self._tunnels: list[Background] = []
        if lab.run(lab.user, "test -e ~/.ray/auth_token || echo none").strip():
            lab.run(lab.user, "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")

    @property
    def head(self) -> dict[str, Any]:
        """The head machine."""
        (head,) = self.lab.machines(kind="head").values()
        return dict(head)

    @property
    def workers(self) -> dict[str, Any]:
        """The worker machines, by their names in the cloud."""
        return self.lab.machines(kind=WORKER)

    def up(self) -> str:
        """Do what `make cluster` does, then open a tunnel to the dashboard; return the output."""
        self._close()  # tunnels to another head
        output = self._at_the_desk(f"python -m sweeps.cluster up {self.file}")
        self._open_a_tunnel(f"ray dashboard {self.file}", 8265)
        # `ray up` does not wait for the dashboard.
        probe = "import urllib.request as r; r.urlopen('http://127.0.0.1:8265/api/gcs_healthz'); print('healthy')"
        wait_until(
            lambda: "healthy" in self.lab.run(self.lab.user, f'python -I -c "{probe}" 2>&1 | tail -1'),
            "the dashboard answered",
            self.explain,
        )
        return output

    def down(self) -> str:
        """Run `ray down`; return the output."""
        self._close()
        return self._at_the_desk(f"ray down -y {self.file}")

    def exec(self, command: str) -> str:
        """Run a command on the head with `ray exec`; return the output."""
        return self._at_the_desk(f"ray exec {self.file} {shlex.quote(command)}")

    def submit_script(self, script: str, arguments: str) -> str:
        """Run a script on the head with `ray submit`; return the output."""
        return self._at_the_desk(f"ray submit {self.file} {script} -- {arguments}")

    def submit(self, command: str) -> Background:
        """Start `ray job submit` with this checkout as working directory; it ends when the job does."""
        command = f"cd {ROOT} && RAY_AUTH_MODE=token ray job submit --address {DASHBOARD} --working-dir . -- {command}"
        return self.lab.start(self.lab.user, command)

    def ask(self, address: str, body: Any = None) -> Any:
        """Request a loopback URL on the head from the head, with the token; return the answer."""
        return self._request(self.head, address, body)

    def ask_mlflow(self, path: str, body: Any = None) -> Any:
        """Request MLflow on the head from the desk, through the tunnel of `make ui CLUSTER=`; return the answer."""
        if not self._open(5000):
            self._open_a_tunnel(f"python -m sweeps.cluster ui {self.file}", 5000)
        return self._request(self.lab.user, f"http://127.0.0.1:5000/api/2.0/mlflow/{path}", body)

    def nodes(self, state: str = "ALIVE") -> set[str]:
        """The addresses of Ray's nodes in a state."""
        nodes = self.ask(f"{DASHBOARD}/api/v0/nodes")["data"]["result"]["result"]
        return {node["node_ip"] for node in nodes if node["state"] == state}

    def wait_for_worker(self, exclude: set[str]) -> str:
        """Wait until a worker with another address than `exclude` is a live node of Ray; return its cloud name."""

        def joined() -> list[str]:
            addresses = {name: machine["address"] for name, machine in self.workers.items()}
            alive = self.nodes() if set(addresses.values()) - exclude else set()
            return [name for name, address in addresses.items() if address in alive - exclude]

        names: list[str] = wait_until(joined, f"a worker besides {exclude} had joined", self.explain)
        return names[0]

    def explain(self) -> str:
        """The logs that explain why a wait timed out."""
        logs = "tail -n 40 /tmp/ray/session_latest/logs/monitor.log /tmp/ray/session_latest/logs/monitor.err"
        heads = self.lab.machines(kind="head").values()
        texts = [self.lab.run(head, logs, expect_failure=True) for head in heads]
        return "\n".join([*texts, self.lab.log()])

    def _close(self) -> None:
        for tunnel in self._tunnels:
            tunnel.kill()
        self._tunnels.clear()
        self.lab.run(self.lab.user, "for each in $(ps -o pid= -C ssh); do kill $each; done", expect_failure=True)

    def _at_the_desk(self, command: str) -> str:
        return self.lab.run(self.lab.user, f"cd {ROOT} && {command}")

    def _open(self, port: int) -> bool:
        probe = f"(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && echo open"
        return bool(self.lab.run(self.lab.user, probe, expect_failure=True))

    def _open_a_tunnel(self, command: str, port: int) -> None:
        self._tunnels.append(self.lab.start(self.lab.user, f"cd {ROOT} && {command}"))
        wait_until(lambda: self._open(port), f"port {port} was open at the desk", lambda: self._tunnels[-1].out)

    def _request(self, host: dict[str, Any], address: str, body: Any) -> Any:
        text = "" if body is None else json.dumps(body)
        return json.loads(
            self.lab.run(host, f"python -I -c {shlex.quote(HTTP_REQUEST_SCRIPT)} {address} {shlex.quote(text)}")
        )
