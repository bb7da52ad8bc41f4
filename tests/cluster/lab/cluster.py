"""A Ray cluster in the laboratory, handled as its user would: every command is given at the user's desk."""

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
    # Each host sees the memory of the machine below, others' programs in it included, and would end its own for want.
    "RAY_memory_monitor_refresh_ms": "0",
    # In the place of `pip install -e`, which a machine of the laboratory is spared.
    "PYTHONPATH": project_folder(),
}
"""What makes the laboratory's hosts quick and small; nothing of it belongs into a cluster file."""

HTTP_REQUEST_SCRIPT = """
import json, pathlib, sys, urllib.request
url, body = sys.argv[1], sys.argv[2]
token = pathlib.Path.home().joinpath(".ray/auth_token").read_text().strip()
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
asked = urllib.request.Request(url, data=body.encode() or None, headers=headers)
print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=20).read().decode())
"""


class Cluster:
    """One that `ray_cluster.yaml` describes.

    Args:
        lab: the cloud and the desk.
        storage: what stands in the place of `s3://BUCKET`.
        settings: see `shipped.on_the_lab`.
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
        """The machine that is the head."""
        (head,) = self.lab.machines(kind="head").values()
        return dict(head)

    @property
    def workers(self) -> dict[str, Any]:
        """The machines that are workers, by their names at the cloud."""
        return self.lab.machines(kind=WORKER)

    def up(self) -> str:
        """What `make cluster` does: `ray up`, once all is in place; then a tunnel to the dashboard. What it said."""
        self._close()  # tunnels to another head
        said = self._at_the_desk(f"python -m sweeps.cluster up {self.file}")
        self._open_a_tunnel(f"ray dashboard {self.file}", 8265)
        # `ray up` does not wait for it.
        look = "import urllib.request as r; r.urlopen('http://127.0.0.1:8265/api/gcs_healthz'); print('healthy')"
        wait_until(
            lambda: "healthy" in self.lab.run(self.lab.user, f'python -I -c "{look}" 2>&1 | tail -1'),
            "the dashboard was there",
            self.explain,
        )
        return said

    def down(self) -> str:
        """`ray down`; what it said."""
        self._close()
        return self._at_the_desk(f"ray down -y {self.file}")

    def exec(self, command: str) -> str:
        """`ray exec`: run a command on the head; what it said."""
        return self._at_the_desk(f"ray exec {self.file} {shlex.quote(command)}")

    def submit_script(self, script: str, arguments: str) -> str:
        """`ray submit`: bring a script to the head and run it there; what it said."""
        return self._at_the_desk(f"ray submit {self.file} {script} -- {arguments}")

    def submit(self, command: str) -> Background:
        """`ray job submit` with this checkout as its working directory; it ends when the job does."""
        desk = f"cd {ROOT} && RAY_AUTH_MODE=token ray job submit --address {DASHBOARD} --working-dir . -- {command}"
        return self.lab.start(self.lab.user, desk)

    def ask(self, address: str, body: Any = None) -> Any:
        """What an address on the head's own loopback answers, with the token, asked from the head."""
        return self._asked(self.head, address, body)

    def ask_mlflow(self, path: str, body: Any = None) -> Any:
        """What MLflow on the head answers through the tunnel that `make ui CLUSTER=` opens, asked at the desk."""
        if not self._open(5000):
            self._open_a_tunnel(f"python -m sweeps.cluster ui {self.file}", 5000)
        return self._asked(self.lab.user, f"http://127.0.0.1:5000/api/2.0/mlflow/{path}", body)

    def nodes(self, state: str = "ALIVE") -> set[str]:
        """The addresses of the nodes that Ray itself counts as in a state."""
        found = self.ask(f"{DASHBOARD}/api/v0/nodes")["data"]["result"]["result"]
        return {each["node_ip"] for each in found if each["state"] == state}

    def wait_for_worker(self, exclude: set[str]) -> str:
        """Wait until a worker is a node of Ray's, other than those whose addresses are given; its name at the cloud."""

        def joined() -> list[str]:
            found = {name: each["address"] for name, each in self.workers.items()}
            alive = self.nodes() if set(found.values()) - exclude else set()
            return [name for name, address in found.items() if address in alive - exclude]

        names: list[str] = wait_until(joined, f"a worker besides {exclude} had joined", self.explain)
        return names[0]

    def explain(self) -> str:
        """What is known when something was waited for in vain."""
        logs = "tail -n 40 /tmp/ray/session_latest/logs/monitor.log /tmp/ray/session_latest/logs/monitor.err"
        heads = self.lab.machines(kind="head").values()
        said = [self.lab.run(head, logs, expect_failure=True) for head in heads]
        return "\n".join([*said, self.lab.log()])

    def _close(self) -> None:
        for each in self._tunnels:
            each.kill()
        self._tunnels.clear()
        self.lab.run(self.lab.user, "for each in $(ps -o pid= -C ssh); do kill $each; done", expect_failure=True)

    def _at_the_desk(self, command: str) -> str:
        return self.lab.run(self.lab.user, f"cd {ROOT} && {command}")

    def _open(self, port: int) -> bool:
        look = f"(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null && echo open"
        return bool(self.lab.run(self.lab.user, look, expect_failure=True))

    def _open_a_tunnel(self, command: str, port: int) -> None:
        self._tunnels.append(self.lab.start(self.lab.user, f"cd {ROOT} && {command}"))
        wait_until(lambda: self._open(port), f"port {port} was open at the desk", lambda: self._tunnels[-1].out)

    def _asked(self, host: dict[str, Any], address: str, body: Any) -> Any:
        text = "" if body is None else json.dumps(body)
        return json.loads(
            self.lab.run(host, f"python -I -c {shlex.quote(HTTP_REQUEST_SCRIPT)} {address} {shlex.quote(text)}")
        )
