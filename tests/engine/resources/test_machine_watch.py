"""What a user is told about machines that a sweep waits for; test_waiting_for_machines.py runs a real Ray."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler.v2.schema import (
    ClusterStatus,
    LaunchRequest,
    NodeInfo,
    RayTaskActorDemand,
    ResourceDemandSummary,
    ResourceUsage,
)

from sweeps.engine.resources import machine_watch
from sweeps.engine.resources.launch_errors import UNKNOWN_PROBLEM_ADVICE, advise, find_problem
from sweeps.engine.resources.machine_watch import Failures, MachineWatch, describe


def status(up: float = 0, waits: bool = True, starting: tuple[str, ...] = (), **fields: Any) -> ClusterStatus:
    """The autoscaler's state: GPUs that are up, whether a task waits, and the types of machines that are starting."""
    demands = ResourceDemandSummary(ray_task_actor_demand=[RayTaskActorDemand(bundles_by_count=[])] if waits else [])
    nodes = [
        NodeInfo(
            instance_type_name=name,
            node_status="PENDING",
            node_id="",
            ip_address="",
            ray_node_type_name=name,
            instance_id=f"i-{index}",
        )
        for index, name in enumerate(starting)
    ]
    usage = [ResourceUsage(resource_name="GPU", total=up, used=up)]
    return ClusterStatus(cluster_resource_usage=usage, resource_demands=demands, pending_nodes=nodes, **fields)


def failures(**by_type: str) -> Failures:
    return Failures(Counter(dict.fromkeys(by_type, 1)), dict(by_type))


def test_while_nothing_waits_or_a_machine_is_up_without_failures_nothing_is_said() -> None:
    assert describe(status(waits=False), "GPU", 8, failures(l4="VcpuLimitExceeded")) == []
    assert describe(status(up=1), "GPU", 8, Failures()) == []


def test_machines_that_are_starting_are_counted_by_type() -> None:
    pending = [LaunchRequest("", "l4", 2, LaunchRequest.Status.PENDING, 0)]
    lines = describe(status(starting=("l4", "a10g"), pending_launches=pending), "GPU", 8, Failures())
    assert lines == ["machines: 0 of 8 GPUs are up, 1 a10g, 3 l4 starting"]


def test_a_failed_launch_is_said_with_its_reason_and_what_to_do_also_if_others_are_up() -> None:
    reason = "Node Launch Exception (VcpuLimitExceeded): You have requested more vCPU capacity than your limit of 0"
    for up in (0, 3):
        lines = describe(status(up=up), "GPU", 8, failures(l4=reason))
        assert lines[0] == f"machines: {up} of 8 GPUs are up, no machine starting"
        assert lines[1] == f"  l4 could not be started, 1 so far: {reason}"
        assert "`python -m sweeps.cluster check` on your machine shows it" in lines[2]
        assert len(lines) == 3


def test_a_failed_set_up_is_said_with_the_log_that_explains_it() -> None:
    lines = describe(status(starting=("l4",)), "GPU", 8, Failures(setups=2, setup_reason="Command exited with 9"))
    assert lines[1] == "  set-up failed, 2 so far: Command exited with 9"
    assert "monitor.out" in lines[2]


def test_if_ray_requests_nothing_at_all_its_logs_are_named() -> None:
    assert "monitor.err" in describe(status(), "GPU", 8, Failures())[1]


def test_without_a_log_on_this_machine_failed_launches_are_counted_without_a_reason() -> None:
    failed = [LaunchRequest("", "gpu", 1, LaunchRequest.Status.FAILED, 0)] * 2
    lines = describe(status(failed_launches=failed), "GPU", 8, Failures())
    assert lines[1:] == ["  gpu could not be started, 2 so far: reason unknown", f"    {UNKNOWN_PROBLEM_ADVICE}"]


@pytest.mark.parametrize(
    ("message", "advice", "another_type_may_start"),
    [
        ("(InsufficientInstanceCapacity): We currently do not have sufficient g6.2xlarge capacity", "no such", True),
        ("(MaxSpotInstanceCountExceeded): Max spot instance count exceeded", "quota", True),
        ("(VcpuLimitExceeded): more vCPU capacity than your current vCPU limit of 0", "quota", True),
        ("Quota 'NVIDIA_L4_GPUS' exceeded. Limit: 0.0 in region us-central1.", "quota", True),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "no such machine", True),
        ("The zone 'us-central1-a' does not have enough resources available", "no such machine", True),
        (
            "(Unsupported): Your requested instance type is not supported",
            "does not offer",
            True,
        ),
        ("(SpotMaxPriceTooLow): Your Spot request price of 0.1 is lower than 0.4", "MaxPrice", True),
        ("(RequestLimitExceeded): Request limit exceeded.", "rate of requests", False),
        ("(UnauthorizedOperation): You are not authorized to perform this operation", "may not start", False),
        ("HttpError 403 when requesting https://compute.googleapis.com", "may not start", False),
        ("(InvalidBlockDeviceMapping): Volume of size 10GB is smaller than snapshot", "node_config", False),
        ("(InvalidAMIID.NotFound): The image id does not exist", "node_config", False),
        ("Unable to locate credentials", "credentials", False),
        ("the printer is on fire", "monitor.log", False),
    ],
)
def test_each_kind_of_error_has_its_advice(message: str, advice: str, another_type_may_start: bool) -> None:
    assert advice in advise(message)
    problem = find_problem(message)
    assert bool(problem and problem.depends_on_type) == another_type_may_start


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[ClusterStatus]:
    """What the autoscaler answers, one state per look."""
    answers: list[ClusterStatus] = []
    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", lambda address: answers.pop(0))
    monkeypatch.setattr(machine_watch.cluster, "worker_node_types", lambda: ([], None))
    return answers


LOG_LINE = "2026-11-30 14:02:07,123\tINFO node_provider.py:489 -- {}\n"
LAUNCH = LOG_LINE.format("Failed to launch 2 nodes of type l4: Node Launch Exception (VcpuLimitExceeded): of 0")


def test_only_failures_since_the_start_count_and_a_line_that_is_not_complete_waits(
    looks: list[ClusterStatus], tmp_path: Path
) -> None:
    log = tmp_path / "monitor.log"
    log.write_text(LAUNCH, encoding="utf-8")  # of an earlier sweep
    watch = MachineWatch("address", print, log_file=log)
    looks += [status()] * 4
    assert "could not be started" not in "\n".join(watch.look())
    with log.open("a", encoding="utf-8") as file:
        file.write(LAUNCH[:60])
    assert "could not be started" not in "\n".join(watch.look())
    with log.open("a", encoding="utf-8") as file:
        file.write(LAUNCH[60:] + LOG_LINE.format("Ray installation failed on instance i-1: exited with 9"))
    lines = watch.look()
    assert lines[1].startswith("  l4 could not be started, 2 so far: Node Launch Exception (VcpuLimitExceeded)")
    assert lines[3] == "  set-up failed, 1 so far: exited with 9"
    log.write_text(LAUNCH, encoding="utf-8")  # rotated
    assert watch.look()[1].startswith("  l4 could not be started, 4 so far")


def test_a_look_without_a_log_or_a_cluster_file_works(looks: list[ClusterStatus], tmp_path: Path) -> None:
    looks.append(status(up=0))
    assert MachineWatch("address", print, log_file=tmp_path / "none").look()[0].startswith("machines: 0 of 0 CPUs")


def test_while_nothing_is_up_each_look_prints_and_later_only_news(looks: list[ClusterStatus], tmp_path: Path) -> None:
    log = tmp_path / "monitor.log"
    printed: list[str] = []
    watch = MachineWatch("address", printed.append, log_file=log)
    log.write_text(LAUNCH, encoding="utf-8")
    looks += [status(up=0), status(up=0)]
    watch.print_news()
    assert printed[0].startswith("machines: 0 of 0 CPUs are up, no machine starting; 0 min since the start")
    assert len(printed) == 3
    watch.print_news()
    assert printed[:3] == printed[3:]
    up = [ResourceUsage(resource_name="CPU", total=2.0, used=2.0)]
    for state in [status(), status(), status(starting=("l4",)), status(waits=False), status()]:
        state.cluster_resource_usage = up
        looks.append(state)
    news = []
    while looks:
        printed.clear()
        with log.open("a", encoding="utf-8") as file:
            file.write(LAUNCH)  # fails again and again
        watch.print_news()
        news.append(len(printed))
    assert news == [3, 0, 3, 0, 3]


def test_an_autoscaler_that_does_not_answer_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def silent(address: str) -> Any:
        raise TimeoutError(address)

    monkeypatch.setattr("ray.autoscaler.v2.sdk.get_cluster_status", silent)
    MachineWatch("address", lambda line: pytest.fail(line), log_file=tmp_path / "none").print_news()
