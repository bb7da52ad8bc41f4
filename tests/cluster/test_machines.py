"""Which GPUs trials see on a machine, and which ports and routes are reachable, from where.

The worker claims two GPUs that do not exist. Torch sees none, so `gpu_sharing_job.py` runs small trials of its own
through the same code path as real ones.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.lab.cloud import PRIVATE
from tests.cluster.scenarios import Scenario, open_scenario

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.usefixtures("can_have_a_laboratory")]

HERE = Path(__file__).parent
DASHBOARD, MLFLOW = 8265, 5000


@pytest.fixture(scope="module")
def cluster(
    can_have_a_laboratory: None, tmp_path_factory: pytest.TempPathFactory, photos: Path, pretrained: Path
) -> Iterator[Scenario]:
    """A running cluster, whose machines stay up while the tests use them."""
    folder = tmp_path_factory.mktemp("machines")
    settings = {"resources": {"CPU": 4, "GPU": 2}, "workers": 1, "idle_minutes": 10}
    with open_scenario("folder", folder, photos, pretrained, **settings) as scenario:
        scenario.cluster.up()
        yield scenario


# --- fractions of GPUs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shares(cluster: Scenario) -> dict[str, list[dict[str, Any]]]:
    """The GPUs that trials saw, by their request: `half` a GPU, `none`, `both`."""
    shared = cluster.folder / "shared"
    shutil.copy(HERE / "gpu_sharing_job.py", shared)
    results = shared / "seen"
    results.mkdir()
    cluster.cluster.exec(f"python {shared / 'gpu_sharing_job.py'} {results}")
    seen: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*.json")):
        seen.setdefault(path.stem.partition("-")[0], []).append(json.loads(path.read_text()))
    return seen


def test_trials_with_half_a_gpu_run_two_at_a_time_on_each_and_see_only_that_one(shares: dict[str, Any]) -> None:
    assert len(shares["half"]) == 4  # each waited for the three others, so all four ran concurrently
    assert len({trial["host"] for trial in shares["half"]}) == 1
    assert Counter(trial["devices"] for trial in shares["half"]) == {"0": 2, "1": 2}


def test_a_trial_without_gpus_sees_none(shares: dict[str, Any]) -> None:
    assert [trial["devices"] for trial in shares["none"]] == ["", ""]


def test_a_trial_with_both_gpus_sees_both(shares: dict[str, Any]) -> None:
    assert [trial["devices"] for trial in shares["both"]] == ["0,1"]


def test_a_page_runs_with_ray_submit_and_is_listed_with_ray_exec(cluster: Scenario) -> None:
    flags = ["--data", cluster.data, "--backbone", "mobilenetv2_100", "--weights", cluster.weights, "--no-advise"]
    flags += ["--image-size", "32", "--strategies", "linear_probe", "--gpus-per-trial", "0", "--name", "submitted"]
    flags += ["--trials", "2", "--epochs", "1", "--finalists", "0", "--reports", "/tmp/reports"]
    output = cluster.cluster.submit_script("sweeps/folder.py", shlex.join(flags))
    assert "Best on validation is linear_probe" in output, output
    listed = cluster.cluster.exec("python -m sweeps list")
    assert re.search(r"submitted +done +2/2", listed), listed


# --- which ports listen, and which requests are answered --------------------------------------------------------------

OPEN = {
    *("/", "/favicon.ico", "/static/js/main.js"),  # the page that asks for the token
    *("/api/authentication_mode", "/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz", "/-/healthz"),
}
"""Routes of the dashboard that work without the token: health checks, and the page that asks for the token."""

OPEN_ON_WORKERS = {"/api/healthz", "/api/local_raylet_healthz"}
"""Routes of a node's agent that work without the token."""


def routes(scenario: Scenario, host: dict[str, Any], server: str) -> list[tuple[str, str]]:
    """Every method and path that a server on a host has a handler for, according to its log."""
    log = scenario.lab.run(host, f"cat /tmp/ray/session_latest/logs/{server}.log")
    registered = re.findall(r"<ResourceRoute \[(\w+)\] <(?:Plain|Dynamic)Resource +(/[^>]*)> ->", log)
    return sorted({(method, re.sub(r"{[^}]*}", "1", path)) for method, path in registered if method != "OPTIONS"})


SEND_REQUESTS = """
import json, sys, urllib.error, urllib.request
def send(method, url):
    headers = {"Authorization": f"Bearer {sys.argv[2]}"} if len(sys.argv) > 2 else {}
    body = b"{}" if method in ("POST", "PUT") else None
    request = urllib.request.Request(url, method=method, data=body, headers=headers)
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
print(json.dumps([send(*request) for request in json.loads(sys.argv[1])]))
"""


def statuses(scenario: Scenario, host: dict[str, Any], requests: list[tuple[str, str]], token: str = "") -> list[int]:
    """The status codes of requests that are sent from a host, as pairs of method and URL."""
    words = ["python", "-I", "-c", SEND_REQUESTS, json.dumps(requests), *([token] if token else [])]
    codes: list[int] = json.loads(scenario.lab.run(host, shlex.join(words)))
    return codes


def test_without_the_token_the_dashboard_answers_401_on_every_route_that_reads_or_changes_state(
    cluster: Scenario,
) -> None:
    head = cluster.cluster.head
    known = routes(cluster, head, "dashboard")
    paths = {path for _, path in known}
    assert len(known) > 50
    assert {"/api/jobs/", "/api/v0/nodes", "/nodes", "/api/cluster_status", "/api/packages/1/1"} <= paths
    requests = [*known, *(("GET", path) for path in sorted(OPEN - paths)), ("GET", "/nothing"), ("POST", "/api/jobs")]
    address = f"http://127.0.0.1:{DASHBOARD}"
    answers = statuses(cluster, head, [(method, f"{address}{path}") for method, path in requests])
    refused = {request for request, status in zip(requests, answers, strict=True) if status == 401}
    answered = set(requests) - refused
    assert {method for method, _ in answered} <= {"GET"}
    assert {path for _, path in answered} <= OPEN


def test_the_dashboard_answers_403_with_a_wrong_token_and_200_with_the_right_one(cluster: Scenario) -> None:
    requests = [("GET", f"http://127.0.0.1:{DASHBOARD}/api/{path}") for path in ("v0/nodes", "jobs/")]
    head = cluster.cluster.head
    assert statuses(cluster, head, requests, "another" * 8) == [403, 403]
    assert statuses(cluster, head, requests, cluster.lab.run(head, "cat ~/.ray/auth_token").strip()) == [200, 200]


def test_inside_the_private_network_agents_require_the_token_too(cluster: Scenario, shares: dict[str, Any]) -> None:
    (worker,) = cluster.cluster.workers.values()
    known = routes(cluster, worker, "dashboard_agent")
    assert ("POST", "/api/job_agent/jobs/") in known
    address = f"http://{worker['address']}:52365"
    answers = statuses(cluster, cluster.cluster.head, [(method, f"{address}{path}") for method, path in known])
    assert {path for (_, path), status in zip(known, answers, strict=True) if status != 401} <= OPEN_ON_WORKERS


def test_inside_the_private_network_the_runtime_env_agent_requires_the_token_and_metrics_do_not(
    cluster: Scenario, shares: dict[str, Any]
) -> None:
    (worker,) = cluster.cluster.workers.values()
    head = cluster.cluster.head
    (port,) = {port for _, port, program in listening(cluster, worker) if program == "ray::RuntimeEnv"}
    job_request = ("POST", f"http://{worker['address']}:{port}/get_or_create_runtime_env")
    assert statuses(cluster, head, [job_request]) == [401]
    metrics_requests = [("GET", f"http://{head['address']}:{port}/metrics") for port in (44217, 44227)]
    assert statuses(cluster, worker, metrics_requests) == [200, 200]


def test_ray_refuses_connections_without_the_token(cluster: Scenario) -> None:
    head = cluster.cluster.head
    status = f"ray status --address {head['address']}:6379"
    assert "Resources" not in cluster.lab.run(
        head, f"RAY_AUTH_TOKEN={'another' * 8} timeout 30 {status}", expect_failure=True
    )
    assert "Resources" in cluster.lab.run(head, status)


def listening(scenario: Scenario, host: dict[str, Any]) -> set[tuple[str, int, str]]:
    """Address, port and program of every listening socket on a host."""
    sockets = set()
    for line in scenario.lab.run(host, "ss --no-header --listening --numeric --tcp --processes").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        program = re.search(r'\(\("([^"]*)"', line)
        address = address.strip("[]").removeprefix("::ffff:").partition("%")[0]
        sockets.add((address, int(port), program[1] if program else ""))
    return sockets


def all_hosts(scenario: Scenario) -> dict[str, dict[str, Any]]:
    return {"head": scenario.cluster.head, "worker": next(iter(scenario.cluster.workers.values()))}


EVERYWHERE = {"*", "0.0.0.0", "::"}

PROGRAMS = {
    "sshd": "on the private address, which the cloud's router leads to",
    "gcs_server": "the cluster's state, on every interface; requires the token",
    "raylet": "a node's tasks and objects, on every interface",
    "ray::IDLE": "an idle process for trials, on every interface",
    "ray::DashboardA": "a node's agent, 52365 on loopback and the private address; metrics require no token",
    "ray::RuntimeEnv": "the files and packages of a job, on the private address; requires the token",
    "python": "see PYTHON_PORTS",
}
"""Programs that listen beyond loopback; `ss` shows the first 15 letters of a name."""

PYTHON_PORTS = {10001: "Ray Client", 44217: "the autoscaler's metrics", 44227: "the dashboard's metrics"}
"""Python's ports on the head. Metrics are for Prometheus, on every interface, and require no token."""


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def test_dashboard_and_mlflow_listen_only_on_loopback(cluster: Scenario, shares: dict[str, Any]) -> None:
    for port in (DASHBOARD, MLFLOW):
        sockets = listening(cluster, cluster.cluster.head)
        addresses = {address for address, number, _ in sockets if number == port}
        assert addresses, port
        assert all(map(is_loopback, addresses)), (port, addresses)


def test_nothing_listens_beyond_loopback_and_the_private_network(cluster: Scenario, shares: dict[str, Any]) -> None:
    """Ray's servers listen on every interface, which no setting changes, so the machines must have no other one."""
    for name, host in all_hosts(cluster).items():
        interfaces = json.loads(cluster.lab.run(host, "ip -json address"))
        entries = [entry for interface in interfaces for entry in interface["addr_info"]]
        addresses = {entry["local"] for entry in entries if entry["scope"] == "global"}
        assert addresses == {host["address"]}, name
        beyond = {socket for socket in listening(cluster, host) if not is_loopback(socket[0])}
        assert {address for address, _, _ in beyond} <= {*EVERYWHERE, host["address"]}, (name, beyond)
        assert {program for _, _, program in beyond} <= PROGRAMS.keys(), (name, beyond)
        assert {port for _, port, program in beyond if program == "python"} <= set(PYTHON_PORTS), (name, beyond)


CONNECT = """
import concurrent.futures, json, socket, sys
def is_reachable(address):
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True
addresses = [tuple(address) for address in json.loads(sys.argv[1])]
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    reachable = pool.map(is_reachable, addresses)
    print(json.dumps([address for address, answer in zip(addresses, reachable) if answer]))
"""


def reachable_addresses(scenario: Scenario, desk: dict[str, Any]) -> set[tuple[str, int]]:
    """The listening addresses and ports of all machines that a computer outside the network can connect to."""
    addresses = []
    for host in all_hosts(scenario).values():
        ports = {port for _, port, _ in listening(scenario, host)} | {DASHBOARD, MLFLOW}
        addresses += [(host[kind], port) for kind in ("public", "address") for port in sorted(ports)]
    output = scenario.lab.run(desk, shlex.join(["python", "-I", "-c", CONNECT, json.dumps(addresses)]))
    return {tuple(address) for address in json.loads(output)}


def test_from_outside_only_ssh_is_reachable_and_only_for_the_user(cluster: Scenario, shares: dict[str, Any]) -> None:
    stranger = cluster.lab.ask("desk", name="stranger", number=2)
    assert reachable_addresses(cluster, cluster.lab.user) == {
        (host["public"], 22) for host in all_hosts(cluster).values()
    }
    assert reachable_addresses(cluster, stranger) == set()
    assert all(host["address"].startswith(PRIVATE) for host in all_hosts(cluster).values())
