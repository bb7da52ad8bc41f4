"""The preflight checks that ask Google Cloud: credentials, services, image, network, accounts, zones and quotas.

They use Google's REST interfaces directly: their answers are small, and Ray's own client library loads for seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sweeps.cluster.check_result import CheckResult

SERVICES = ("compute.googleapis.com", "iam.googleapis.com", "cloudresourcemanager.googleapis.com")
"""Services that Ray's provider calls."""

GPU_METRICS = {
    "a2-highgpu": "NVIDIA_A100_GPUS",
    "a2-ultragpu": "NVIDIA_A100_80GB_GPUS",
    "g2-standard": "NVIDIA_L4_GPUS",
}
"""Name of the quota of a region for the GPUs of a machine family; that of spot machines begins with PREEMPTIBLE_."""

SERVICE_OFF = ("SERVICE_DISABLED", "has not been used in project", "it is disabled")
"""Texts of Google's answer if a service is switched off."""


@dataclass(frozen=True)
class GoogleUrls:
    """Addresses of Google's REST interfaces."""

    compute: str = "https://compute.googleapis.com/compute/v1"
    iam: str = "https://iam.googleapis.com/v1"
    services: str = "https://serviceusage.googleapis.com/v1"


class Session(Protocol):
    """What is used of `requests.Session`, and so of google-auth's AuthorizedSession."""

    def get(self, url: str, *, timeout: float) -> Any:
        """Send a GET request."""


class GoogleError(Exception):
    """An answer of Google's that is not a success.

    Args:
        status: status code of HTTP.
        message: Google's explanation.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.is_service_off = any(text in message for text in SERVICE_OFF)


@dataclass(frozen=True)
class GoogleProject:
    """A project as seen by a user.

    Args:
        session: sends requests with the user's credentials.
        project: id of the project.
        region: region of the cluster.
        zone: zone of the cluster.
        urls: addresses of Google's interfaces.
    """

    session: Session
    project: str
    region: str
    zone: str
    urls: GoogleUrls = GoogleUrls()

    def get(self, url: str) -> dict[str, Any]:
        """Return the answer to a GET request.

        Raises:
            GoogleError: it is not a success.
        """
        response = self.session.get(url, timeout=20)
        try:
            answer: dict[str, Any] = response.json()
        except ValueError:
            raise GoogleError(response.status_code, response.text[:200]) from None
        if response.status_code != 200:
            error = answer.get("error", {})
            reasons = [detail.get("reason", "") for detail in error.get("details", []) if isinstance(detail, Mapping)]
            raise GoogleError(response.status_code, " ".join([error.get("message", ""), *reasons]))
        return answer


def run_gcp_checks(config: dict[str, Any]) -> Iterator[CheckResult]:
    """Run all checks with the user's credentials; without valid ones only that check runs.

    Args:
        config: the cluster file, filled in.
    """
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import AuthorizedSession

    provider = config["provider"]
    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        session: Any = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        google_project = GoogleProject(
            session, provider["project_id"], provider["region"], provider["availability_zone"]
        )
        yield from check_project(config, google_project)
    except GoogleAuthError as error:
        first_line = str(error).splitlines()[0]
        yield CheckResult("credentials", "missing", f"{first_line}: gcloud auth application-default login")


def check_project(config: dict[str, Any], project: GoogleProject) -> Iterator[CheckResult]:
    """Run the checks that need credentials, one at a time.

    Yields:
        One result per check. A request that Google denies is a note, any other failure is `missing`.
    """
    try:
        services = _check_services(project)
    except GoogleError as error:
        services = _failed("services", error)
    yield services
    if services.status == "missing":
        return
    checks = {
        "image": _check_images,
        "network": _check_network,
        "accounts": _check_accounts,
        "zone": _check_zones,
        "quota": _check_quotas,
    }
    for name, check in checks.items():
        try:
            yield from check(config, project)
        except GoogleError as error:
            yield _failed(name, error)
        except OSError as error:  # requests' own errors are OSErrors
            yield CheckResult(name, "note", f"could not be checked: {error}")


def _failed(name: str, error: GoogleError) -> CheckResult:
    if error.is_service_off:
        return CheckResult(name, "missing", f"{error}; gcloud services enable {' '.join(SERVICES)}")
    return CheckResult(name, "note" if error.status in (401, 403) else "missing", f"could not be checked: {error}")


def _check_services(project: GoogleProject) -> CheckResult:
    """Check that the services are on: in a new project they are off, and Ray then fails with a baffling error."""
    names = "&".join(f"names=projects/{project.project}/services/{service}" for service in SERVICES)
    answer = project.get(f"{project.urls.services}/projects/{project.project}/services:batchGet?{names}")
    enabled = {service["name"].rpartition("/")[2] for service in answer["services"] if service["state"] == "ENABLED"}
    absent = [service for service in SERVICES if service not in enabled]
    if absent:
        command = f"gcloud services enable {' '.join(absent)} --project={project.project}"
        return CheckResult("services", "missing", f"{', '.join(absent)} is off in {project.project}: {command}")
    return CheckResult("services", "ok", f"{len(SERVICES)} services are on in {project.project}")


def _check_images(config: dict[str, Any], project: GoogleProject) -> Iterator[CheckResult]:
    """Check that each image exists and fits the disk."""
    seen = set()
    for name, node in config["available_node_types"].items():
        for disk in node["node_config"].get("disks", []):
            parameters = disk.get("initializeParams", {})
            source, size = parameters.get("sourceImage", ""), int(parameters.get("diskSizeGb", 0))
            path = source[source.index("projects/") :] if "projects/" in source else ""
            if not path:
                continue
            try:
                image = project.get(f"{project.urls.compute}/{path}")
            except GoogleError as error:
                if error.status != 404:
                    raise
                command = "gcloud compute images list --no-standard-images --project=deeplearning-platform-release"
                yield CheckResult("image", "missing", f"{source} does not exist; to list others: {command}")
                return
            if source not in seen:
                yield _image_result(image)
                seen.add(source)
            minimum = int(image.get("diskSizeGb", 0))
            if size and size < minimum:
                message = f"diskSizeGb {size} is smaller than the image: write at least {minimum}"
                yield CheckResult(f"disk {name}", "missing", message)


def _image_result(image: dict[str, Any]) -> CheckResult:
    state = image.get("deprecated", {}).get("state")
    if not state:
        return CheckResult("image", "ok", image["name"])
    message = f"{image['name']} is {state}: choose a newer one"
    return CheckResult("image", "missing" if state in ("OBSOLETE", "DELETED") else "note", message)


def _check_network(config: dict[str, Any], project: GoogleProject) -> Iterator[CheckResult]:
    interfaces = [
        interface["subnetwork"]
        for node in config["available_node_types"].values()
        for interface in node["node_config"].get("networkInterfaces", [])
    ]
    for subnetwork in sorted(set(interfaces)):
        try:
            found = project.get(f"{project.urls.compute}/{subnetwork}")
        except GoogleError as error:
            if error.status != 404:
                raise
            message = f"{subnetwork} does not exist: create it with the commands at the top of the cluster file"
            yield CheckResult("network", "missing", message)
        else:
            yield CheckResult("network", "ok", f"{found['name']}, {found.get('ipCidrRange', '')}")


def _check_accounts(config: dict[str, Any], project: GoogleProject) -> Iterator[CheckResult]:
    accounts = [
        account["email"]
        for node in config["available_node_types"].values()
        for account in node["node_config"].get("serviceAccounts", [])
    ]
    absent = []
    for account in sorted(set(accounts)):
        try:
            project.get(f"{project.urls.iam}/projects/{project.project}/serviceAccounts/{account}")
        except GoogleError as error:
            if error.status != 404:
                raise
            absent.append(account)
    if absent:
        names = " && ".join(f"gcloud iam service-accounts create {account.partition('@')[0]}" for account in absent)
        message = f"{', '.join(absent)} does not exist: {names}, then grant the roles as at the top of the cluster file"
        yield CheckResult("accounts", "missing", message)
    else:
        yield CheckResult("accounts", "ok", ", ".join(sorted(set(accounts))))


def _workers(config: dict[str, Any]) -> dict[str, Any]:
    """Return the node configurations of worker types that may start at all, with their maximum number."""
    return {
        name: node
        for name, node in config["available_node_types"].items()
        if name != config["head_node_type"] and node.get("max_workers", config["max_workers"])
    }


def _check_zones(config: dict[str, Any], project: GoogleProject) -> Iterator[CheckResult]:
    """Check that the zone offers each machine type, and name the other zones: Ray's provider uses one zone only."""
    for machine_type in sorted({node["node_config"]["machineType"] for node in _workers(config).values()}):
        url = f"{project.urls.compute}/projects/{project.project}/aggregated/machineTypes"
        answer = project.get(f"{url}?filter=name%3D{machine_type}")
        offers = answer.get("items", {}).items()
        zones = sorted(place.removeprefix("zones/") for place, found in offers if found.get("machineTypes"))
        others = [zone for zone in zones if zone.startswith(f"{project.region}-") and zone != project.zone]
        name = f"zone {machine_type}"
        if project.zone not in zones:
            offered = f"offered in {', '.join(others)}" if others else f"offered in no zone of {project.region}"
            message = f"not offered in {project.zone}, but {offered}: change availability_zone, or the machine type"
            yield CheckResult(name, "missing", message)
        elif others:
            advice = f"if it is sold out, set availability_zone to {' or '.join(others)}"
            yield CheckResult(name, "ok", f"offered in {project.zone}, the only zone of this cluster; {advice}")
        else:
            message = f"offered in {project.zone} and in no other zone of {project.region}, which may be sold out"
            yield CheckResult(name, "note", message)


def _check_quotas(config: dict[str, Any], project: GoogleProject) -> Iterator[CheckResult]:
    """Check the quota of GPUs, of the whole project and of the region: new projects have none."""
    page = f"https://console.cloud.google.com/iam-admin/quotas?project={project.project}"
    of_project = project.get(f"{project.urls.compute}/projects/{project.project}")["quotas"]
    of_region = project.get(f"{project.urls.compute}/projects/{project.project}/regions/{project.region}")["quotas"]
    needed: dict[str, int] = {}
    for node in _workers(config).values():
        machine, gpus = node["node_config"], int(node["resources"].get("GPU", 0))
        metric = next((gpu for family, gpu in GPU_METRICS.items() if machine["machineType"].startswith(family)), None)
        if metric is None or not gpus:
            continue
        if machine.get("scheduling", {}).get("provisioningModel") == "SPOT":
            metric = f"PREEMPTIBLE_{metric}"
        needed[metric] = needed.get(metric, 0) + gpus * node.get("max_workers", config["max_workers"])
    wanted = {metric: (of_region, number, project.region) for metric, number in needed.items()}
    if needed:
        wanted["GPUS_ALL_REGIONS"] = (of_project, max(needed.values()), "the whole project")
    for metric, (quotas, number, where) in wanted.items():
        found = [quota for quota in quotas if quota["metric"] == metric]
        limit = float(found[0]["limit"]) if found else 0.0
        free = limit - (float(found[0].get("usage", 0)) if found else 0.0)
        message = f"{metric} of {where} is {limit:g}, {free:g} of them free"
        ask = f"ask for {number} at {page}"
        if limit < 1:
            yield CheckResult("quota", "missing", f"{message}; {ask}")
        elif limit < number:
            yield CheckResult("quota", "note", f"{message}, fewer than the {number} of max_workers; {ask}")
        else:
            yield CheckResult("quota", "ok", message)
