"""What trials see of a machine's GPUs, and what strangers see of the machines.

The worker says that it has two GPUs. Torch sees none there, so it is a small trial of our own that is run, through the
same door as real ones (`gpu_sharing_job.py`).
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
    """Up, with its machines kept for as long as the tests look at them."""
    folder = tmp_path_factory.mktemp("machines")
    settings = {"resources": {"CPU": 4, "GPU": 2}, "workers": 1, "idle_minutes": 10}
    with open_scenario("folder", folder, photos, pretrained, **settings) as here:
        here.cluster.up()
        yield here


# --- shares of GPUs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shares(cluster: Scenario) -> dict[str, list[dict[str, Any]]]:
    """What trials saw, by what they asked for: `half` a GPU, `none`, `both`."""
    shared = cluster.folder / "shared"
    shutil.copy(HERE / "gpu_sharing_job.py", shared)
    notes = shared / "seen"
    notes.mkdir()
    cluster.cluster.exec(f"python {shared / 'gpu_sharing_job.py'} {notes}")
    seen: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(notes.glob("*.json")):
        seen.setdefault(path.stem.partition("-")[0], []).append(json.loads(path.read_text()))
    return seen


def test_trials_of_half_a_gpu_run_two_at_a_time_on_each_and_see_one(shares: dict[str, Any]) -> None:
    assert len(shares["half"]) == 4  # each waited for the three others, so all four ran at a time
    assert len({each["host"] for each in shares["half"]}) == 1
    assert Counter(each["devices"] for each in shares["half"]) == {"0": 2, "1": 2}


def test_a_trial_that_asks_for_no_gpu_sees_none(shares: dict[str, Any]) -> None:
    assert [each["devices"] for each in shares["none"]] == ["", ""]


def test_a_trial_that_asks_for_both_sees_both(shares: dict[str, Any]) -> None:
    assert [each["devices"] for each in shares["both"]] == ["0,1"]


def test_a_page_runs_by_ray_submit_and_is_seen_by_ray_exec(cluster: Scenario) -> None:
    flags = ["--data", cluster.data, "--backbone", "mobilenetv2_100", "--weights", cluster.weights, "--no-advise"]
    flags += ["--image-size", "32", "--strategies", "linear_probe", "--gpus-per-trial", "0", "--name", "submitted"]
    flags += ["--trials", "2", "--epochs", "1", "--finalists", "0", "--reports", "/tmp/reports"]
    said = cluster.cluster.submit_script("sweeps/folder.py", shlex.join(flags))
    assert "Best on validation is linear_probe" in said, said
    listed = cluster.cluster.exec("python -m sweeps list")
    assert re.search(r"submitted +2/2", listed), listed


# --- what listens, and who gets an answer -----------------------------------------------------------------------------

OPEN = {
    *("/", "/favicon.ico", "/static/js/main.js"),  # the page that asks for the token
    *("/api/authentication_mode", "/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz", "/-/healthz"),
}
"""What the dashboard answers to anybody: whether it lives, and the page that asks for the token."""

OPEN_ON_WORKERS = {"/api/healthz", "/api/local_raylet_healthz"}
"""What a node's agent answers to anybody."""


def routes(here: Scenario, host: dict[str, Any], server: str) -> list[tuple[str, str]]:
    """Every method and path that a server on a host has a handler for, as it has written in its log."""
    log = here.lab.run(host, f"cat /tmp/ray/session_latest/logs/{server}.log")
    found = re.findall(r"<ResourceRoute \[(\w+)\] <(?:Plain|Dynamic)Resource +(/[^>]*)> ->", log)
    return sorted({(method, re.sub(r"{[^}]*}", "1", path)) for method, path in found if method != "OPTIONS"})


ASK_ALL = """
import json, sys, urllib.error, urllib.request
def ask(method, url):
    headers = {"Authorization": f"Bearer {sys.argv[2]}"} if len(sys.argv) > 2 else {}
    body = b"{}" if method in ("POST", "PUT") else None
    asked = urllib.request.Request(url, method=method, data=body, headers=headers)
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
print(json.dumps([ask(*each) for each in json.loads(sys.argv[1])]))
"""


def statuses(here: Scenario, host: dict[str, Any], asked: list[tuple[str, str]], token: str = "") -> list[int]:
    """What is answered to requests from a host."""
    words = ["python", "-I", "-c", ASK_ALL, json.dumps(asked), *([token] if token else [])]
    found: list[int] = json.loads(here.lab.run(host, shlex.join(words)))
    return found


def test_without_the_token_the_dashboard_answers_401_on_every_route_that_reads_or_changes_something(
    cluster: Scenario,
) -> None:
    head = cluster.cluster.head
    known = routes(cluster, head, "dashboard")
    paths = {path for _, path in known}
    assert len(known) > 50
    assert {"/api/jobs/", "/api/v0/nodes", "/nodes", "/api/cluster_status", "/api/packages/1/1"} <= paths
    asked = [*known, *(("GET", path) for path in sorted(OPEN - paths)), ("GET", "/nothing"), ("POST", "/api/jobs")]
    address = f"http://127.0.0.1:{DASHBOARD}"
    answers = statuses(cluster, head, [(how, f"{address}{path}") for how, path in asked])
    refused = {each for each, status in zip(asked, answers, strict=True) if status == 401}
    assert {path for how, path in set(asked) - refused if how == "GET"} <= OPEN
    assert {each for each in set(asked) - refused if each[0] != "GET"} == set()


def test_with_another_token_it_answers_403_and_with_the_token_200(cluster: Scenario) -> None:
    asked = [("GET", f"http://127.0.0.1:{DASHBOARD}/api/v0/nodes"), ("GET", f"http://127.0.0.1:{DASHBOARD}/api/jobs/")]
    head = cluster.cluster.head
    assert statuses(cluster, head, asked, "another" * 8) == [403, 403]
    assert statuses(cluster, head, asked, cluster.lab.run(head, "cat ~/.ray/auth_token").strip()) == [200, 200]


def test_inside_the_private_network_agents_want_the_token_too(cluster: Scenario, shares: dict[str, Any]) -> None:
    (worker,) = cluster.cluster.workers.values()
    known = routes(cluster, worker, "dashboard_agent")
    assert ("POST", "/api/job_agent/jobs/") in known
    address = f"http://{worker['address']}:52365"
    answers = statuses(cluster, cluster.cluster.head, [(how, f"{address}{path}") for how, path in known])
    assert {path for (_, path), status in zip(known, answers, strict=True) if status != 401} <= OPEN_ON_WORKERS


def test_inside_the_private_network_what_unpacks_jobs_wants_the_token_and_metrics_do_not(
    cluster: Scenario, shares: dict[str, Any]
) -> None:
    (worker,) = cluster.cluster.workers.values()
    head = cluster.cluster.head
    (port,) = {each for _, each, program in listening(cluster, worker) if program == "ray::RuntimeEnv"}
    asked = [("POST", f"http://{worker['address']}:{port}/get_or_create_runtime_env")]
    assert statuses(cluster, head, asked) == [401]
    asked = [("GET", f"http://{head['address']}:{each}/metrics") for each in (44217, 44227)]
    assert statuses(cluster, worker, asked) == [200, 200]


def test_ray_itself_lets_nobody_in_without_the_token(cluster: Scenario) -> None:
    head = cluster.cluster.head
    status = f"ray status --address {head['address']}:6379"
    assert "Resources" not in cluster.lab.run(
        head, f"RAY_AUTH_TOKEN={'another' * 8} timeout 30 {status}", expect_failure=True
    )
    assert "Resources" in cluster.lab.run(head, status)


def listening(here: Scenario, host: dict[str, Any]) -> set[tuple[str, int, str]]:
    """Address, port and program of all that listens on a host."""
    found = set()
    for line in here.lab.run(host, "ss --no-header --listening --numeric --tcp --processes").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        program = re.search(r'\(\("([^"]*)"', line)
        address = address.strip("[]").removeprefix("::ffff:").partition("%")[0]
        found.add((address, int(port), program[1] if program else ""))
    return found


def all_hosts(here: Scenario) -> dict[str, dict[str, Any]]:
    return {"head": here.cluster.head, "worker": next(iter(here.cluster.workers.values()))}


EVERYWHERE = {"*", "0.0.0.0", "::"}

PROGRAMS = {
    "sshd": "on the private address, which the cloud's router leads to",
    "gcs_server": "the cluster's state, on every interface; wants the token",
    "raylet": "a node's tasks and objects, on every interface",
    "ray::IDLE": "a process for trials that has none at the moment, on every interface",
    "ray::DashboardA": "a node's agent, 52365 on loopback and the private address; wants the token. Its metrics do not",
    "ray::RuntimeEnv": "what a job was sent with, on the private address; wants the token",
    "python": "see PYTHON_PORTS",
}
"""What listens beyond loopback, as `ss` shows the first 15 letters of its name."""

PYTHON_PORTS = {10001: "Ray Client", 44217: "the autoscaler's metrics", 44227: "the dashboard's metrics"}
"""On the head. Metrics are numbers for Prometheus, on every interface, and want no token."""


def is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def test_dashboard_and_mlflow_listen_on_loopback_alone(cluster: Scenario, shares: dict[str, Any]) -> None:
    for port in (DASHBOARD, MLFLOW):
        addresses = {address for address, each, _ in listening(cluster, cluster.cluster.head) if each == port}
        assert addresses, port
        assert all(map(is_loopback, addresses)), (port, addresses)


def test_nothing_listens_beyond_loopback_and_the_private_network(cluster: Scenario, shares: dict[str, Any]) -> None:
    """Ray's own servers listen on every interface, and no setting of it says otherwise; so there must be no other."""
    for name, host in all_hosts(cluster).items():
        cards = json.loads(cluster.lab.run(host, "ip -json address"))
        addresses = {each["local"] for card in cards for each in card["addr_info"] if each["scope"] == "global"}
        assert addresses == {host["address"]}, name
        beyond = {each for each in listening(cluster, host) if not is_loopback(each[0])}
        assert {address for address, _, _ in beyond} <= {*EVERYWHERE, host["address"]}, (name, beyond)
        assert {program for _, _, program in beyond} <= PROGRAMS.keys(), (name, beyond)
        assert {port for _, port, program in beyond if program == "python"} <= set(PYTHON_PORTS), (name, beyond)


KNOCK = """
import concurrent.futures, json, socket, sys
def answers(where):
    try:
        socket.create_connection(where, timeout=1).close()
    except OSError:
        return False
    return True
doors = [tuple(each) for each in json.loads(sys.argv[1])]
with concurrent.futures.ThreadPoolExecutor(64) as pool:
    print(json.dumps([door for door, answer in zip(doors, pool.map(answers, doors)) if answer]))
"""


def doors(here: Scenario, desk: dict[str, Any]) -> set[tuple[str, int]]:
    """Which of all the ports that anything listens on, on any machine, answer at a desk outside."""
    knocked = []
    for host in all_hosts(here).values():
        ports = {port for _, port, _ in listening(here, host)} | {DASHBOARD, MLFLOW}
        knocked += [(host[which], port) for which in ("public", "address") for port in sorted(ports)]
    said = here.lab.run(desk, shlex.join(["python", "-I", "-c", KNOCK, json.dumps(knocked)]))
    return {tuple(each) for each in json.loads(said)}


def test_from_outside_nothing_answers_but_ssh_and_that_only_to_the_user(
    cluster: Scenario, shares: dict[str, Any]
) -> None:
    stranger = cluster.lab.ask("desk", name="stranger", number=2)
    assert doors(cluster, cluster.lab.user) == {(host["public"], 22) for host in all_hosts(cluster).values()}
    assert doors(cluster, stranger) == set()
    assert all(host["address"].startswith(PRIVATE) for host in all_hosts(cluster).values())
