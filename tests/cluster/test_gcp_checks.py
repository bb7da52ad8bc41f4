"""What `python -m sweeps.cluster check clusters/gcp.yaml` asks Google Cloud, and what it says to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import yaml

from sweeps.cluster import preflight
from sweeps.cluster.check_result import CheckResult
from sweeps.cluster.gcp_checks import GoogleProject, GoogleUrls, check_project, run_gcp_checks
from tests.cluster.mock_aws import ROOT

pytestmark = pytest.mark.slow  # every check asks a local server

FILE = ROOT / "clusters" / "gcp.yaml"
IMAGE = "common-cu129-ubuntu-2404-nvidia-580-v20260626"
ACCOUNTS = "/iam/projects/me/serviceAccounts"


def filled_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8").replace("FILL-IN", "me"))
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]  # without YAML's aliases


class Google:
    """A stand-in for Google's REST interfaces: answers by path, and the requests that were sent."""

    def __init__(self) -> None:
        services = ("compute", "iam", "cloudresourcemanager")
        self.answers: dict[str, Any] = {
            "/services/projects/me/services:batchGet": {
                "services": [
                    {"name": f"projects/1/services/{name}.googleapis.com", "state": "ENABLED"} for name in services
                ]
            },
            f"/compute/projects/deeplearning-platform-release/global/images/{IMAGE}": {
                "name": IMAGE,
                "diskSizeGb": "50",
            },
            "/compute/projects/me/regions/us-central1/subnetworks/xfer": {
                "name": "xfer",
                "ipCidrRange": "10.10.0.0/20",
            },
            f"{ACCOUNTS}/xfer-head@me.iam.gserviceaccount.com": {},
            f"{ACCOUNTS}/xfer-worker@me.iam.gserviceaccount.com": {},
            "/compute/projects/me/aggregated/machineTypes": self.offered("a", "b", "c"),
            "/compute/projects/me": {"quotas": [{"metric": "GPUS_ALL_REGIONS", "limit": 8.0, "usage": 0.0}]},
            "/compute/projects/me/regions/us-central1": {
                "quotas": [{"metric": "PREEMPTIBLE_NVIDIA_L4_GPUS", "limit": 8.0, "usage": 2.0}]
            },
        }
        self.errors: dict[str, tuple[int, Any]] = {}
        self.requests: list[str] = []

    @staticmethod
    def offered(*letters: str, region: str = "us-central1") -> dict[str, Any]:
        """The answer about a machine type that some zones offer."""
        offers: dict[str, Any] = {f"zones/{region}-{letter}": {"machineTypes": [{}]} for letter in letters}
        return {
            "items": {"zones/europe-west4-a": {"machineTypes": [{}]}, "zones/us-east1-b": {"warning": {}}, **offers}
        }

    def refuse(self, path: str, status: int, message: str, reason: str = "") -> None:
        self.errors[path] = status, {"error": {"message": message, "details": [{"reason": reason}]}}


@pytest.fixture
def google() -> Iterator[tuple[Google, GoogleUrls]]:
    stand_in = Google()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stand_in.requests.append(self.path)
            path = urlsplit(self.path).path
            missing = (404, {"error": {"message": f"{path} was not found"}})
            answer = (200, stand_in.answers[path]) if path in stand_in.answers else missing
            status, content = stand_in.errors.get(path, answer)
            body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield stand_in, GoogleUrls(f"{address}/compute", f"{address}/iam", f"{address}/services")
    server.shutdown()
    server.server_close()


def check(urls: GoogleUrls, config: dict[str, Any] | None = None) -> dict[str, CheckResult]:
    session = requests.Session()
    session.trust_env = False  # no proxy
    config = config or filled_config()
    provider = config["provider"]
    project = GoogleProject(session, "me", provider["region"], provider["availability_zone"], urls)
    return {result.name: result for result in check_project(config, project)}


def missing(results: dict[str, CheckResult]) -> dict[str, str]:
    return {name: result.message for name, result in results.items() if result.status == "missing"}


def test_a_prepared_project_passes_all_checks(google: tuple[Google, GoogleUrls]) -> None:
    stand_in, urls = google
    results = check(urls)
    assert {name: result.status for name, result in results.items()} == {
        "services": "ok",
        "image": "ok",
        "network": "ok",
        "accounts": "ok",
        "zone g2-standard-8": "ok",
        "quota": "ok",
    }
    assert "set availability_zone to us-central1-b or us-central1-c" in results["zone g2-standard-8"].message
    assert any("filter=name%3Dg2-standard-8" in path for path in stand_in.requests)


@pytest.mark.parametrize("service", ["compute", "iam", "cloudresourcemanager"])
def test_a_service_that_is_off_in_a_new_project_is_reported_and_nothing_else_is_asked(
    google: tuple[Google, GoogleUrls], service: str
) -> None:
    stand_in, urls = google
    services = stand_in.answers["/services/projects/me/services:batchGet"]["services"]
    [off] = [one for one in services if service in one["name"]]
    off["state"] = "DISABLED"
    results = check(urls)
    assert list(results) == ["services"]
    assert f"gcloud services enable {service}.googleapis.com --project=me" in results["services"].message
    assert len(stand_in.requests) == 1


def test_if_services_cannot_be_listed_a_service_that_is_off_is_noticed_by_its_answer(
    google: tuple[Google, GoogleUrls],
) -> None:
    stand_in, urls = google
    stand_in.refuse("/services/projects/me/services:batchGet", 403, "denied", "PERMISSION_DENIED")
    stand_in.refuse(f"{ACCOUNTS}/xfer-head@me.iam.gserviceaccount.com", 403, "IAM API is off", "SERVICE_DISABLED")
    results = check(urls)
    assert results["services"].status == "note"
    assert list(missing(results)) == ["accounts"]
    assert "gcloud services enable" in missing(results)["accounts"]


@pytest.mark.parametrize(
    ("path", "name", "advice"),
    [
        (
            f"/compute/projects/deeplearning-platform-release/global/images/{IMAGE}",
            "image",
            "gcloud compute images list",
        ),
        ("/compute/projects/me/regions/us-central1/subnetworks/xfer", "network", "commands at the top"),
        (f"{ACCOUNTS}/xfer-worker@me.iam.gserviceaccount.com", "accounts", "service-accounts create xfer-worker"),
    ],
)
def test_what_does_not_exist_is_reported_with_the_command(
    google: tuple[Google, GoogleUrls], path: str, name: str, advice: str
) -> None:
    stand_in, urls = google
    del stand_in.answers[path]
    found = missing(check(urls))
    assert list(found) == [name]
    assert advice in found[name]


def test_a_disk_smaller_than_its_image_and_a_withdrawn_image_are_reported(google: tuple[Google, GoogleUrls]) -> None:
    stand_in, urls = google
    image = stand_in.answers[f"/compute/projects/deeplearning-platform-release/global/images/{IMAGE}"]
    image["diskSizeGb"] = "150"
    assert missing(check(urls)) == {"disk head": "diskSizeGb 100 is smaller than the image: write at least 150"}
    image |= {"diskSizeGb": "50", "deprecated": {"state": "DEPRECATED"}}
    assert check(urls)["image"].status == "note"
    image["deprecated"] = {"state": "OBSOLETE"}
    assert missing(check(urls)) == {"image": f"{IMAGE} is OBSOLETE: choose a newer one"}


@pytest.mark.parametrize(
    ("letters", "status", "message"),
    [
        ("a", "note", "in no other zone of us-central1"),
        ("bc", "missing", "not offered in us-central1-a, but offered in us-central1-b, us-central1-c"),
        ("", "missing", "offered in no zone of us-central1"),
    ],
)
def test_a_machine_type_needs_the_zone_and_should_have_another(
    google: tuple[Google, GoogleUrls], letters: str, status: str, message: str
) -> None:
    stand_in, urls = google
    stand_in.answers["/compute/projects/me/aggregated/machineTypes"] = stand_in.offered(*letters)
    result = check(urls)["zone g2-standard-8"]
    assert result.status == status
    assert message in result.message


@pytest.mark.parametrize(("limit", "status"), [(None, "missing"), (0.0, "missing"), (3.0, "note"), (8.0, "ok")])
@pytest.mark.parametrize(
    ("path", "metric"),
    [
        ("/compute/projects/me/regions/us-central1", "PREEMPTIBLE_NVIDIA_L4_GPUS"),
        ("/compute/projects/me", "GPUS_ALL_REGIONS"),
    ],
)
def test_a_gpu_quota_below_the_file_is_reported_with_the_page_that_raises_it(
    google: tuple[Google, GoogleUrls], path: str, metric: str, limit: float | None, status: str
) -> None:
    stand_in, urls = google
    quotas = [] if limit is None else [{"metric": metric, "limit": limit, "usage": 0.0}]
    stand_in.answers[path]["quotas"] = quotas
    session = requests.Session()
    session.trust_env = False
    project = GoogleProject(session, "me", "us-central1", "us-central1-a", urls)
    results = [one for one in check_project(filled_config(), project) if one.message.startswith(metric)]
    assert [one.status for one in results] == [status]
    if status != "ok":
        assert "ask for 8 at https://console.cloud.google.com/iam-admin/quotas?project=me" in results[0].message


def test_on_demand_machines_that_are_switched_on_need_their_own_quota(google: tuple[Google, GoogleUrls]) -> None:
    _, urls = google
    config = filled_config()
    config["available_node_types"]["l4_on_demand"]["max_workers"] = 2
    result = check(urls, config)
    session = requests.Session()
    session.trust_env = False
    project = GoogleProject(session, "me", "us-central1", "us-central1-a", urls)
    messages = [one.message for one in check_project(config, project) if one.status == "missing"]
    assert result["image"].status == "ok"
    assert [message.partition(" ")[0] for message in messages] == ["NVIDIA_L4_GPUS"]


@pytest.mark.parametrize(("status", "expected"), [(403, "note"), (401, "note"), (500, "missing"), (400, "missing")])
def test_a_request_that_google_denies_is_a_note_and_the_other_checks_go_on(
    google: tuple[Google, GoogleUrls], status: int, expected: str
) -> None:
    stand_in, urls = google
    stand_in.refuse("/compute/projects/me", status, "not for you")
    results = check(urls)
    assert results["quota"].status == expected
    assert "not for you" in results["quota"].message
    stand_in.errors["/compute/projects/me/regions/us-central1/subnetworks/xfer"] = 502, "<html>"
    assert "502: <html>" in check(urls)["network"].message


def test_without_credentials_only_that_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nowhere.json"))
    [result] = run_gcp_checks(filled_config())
    assert (result.name, result.status) == ("credentials", "missing")
    assert result.message.endswith("gcloud auth application-default login")


def test_google_is_asked_only_once_the_file_is_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: name)
    asked: list[Any] = []
    monkeypatch.setattr("sweeps.cluster.gcp_checks.run_gcp_checks", lambda config: asked.append(config) or [])
    list(preflight.run_checks(FILE))
    assert asked == []
    filled = tmp_path / "gcp.yaml"
    filled.write_text(FILE.read_text(encoding="utf-8").replace("FILL-IN", "me"), encoding="utf-8")
    list(preflight.run_checks(filled))
    assert [config["provider"]["project_id"] for config in asked] == ["me"]
