"""Why a cloud does not start a machine, as its error messages tell, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchProblem:
    """A kind of error with which a cloud refuses to start a machine."""

    pattern: str
    """Regular expression that the error's text contains."""
    advice: str
    """What it means, and what to do."""
    depends_on_type: bool = False
    """Whether another node type of the same cluster may start nevertheless."""


LAUNCH_PROBLEMS = (
    LaunchProblem(
        r"RequestLimitExceeded|Throttl|RATE_LIMIT|HttpError 429",
        "the cloud limits the rate of requests, and Ray repeats them: nothing to do",
    ),
    # Amazon: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
    # Google: https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation
    LaunchProblem(
        r"MaxSpotInstanceCountExceeded|VcpuLimitExceeded|InstanceLimitExceeded|QUOTA_EXCEEDED|[Qq]uota '?\w+'? exceeded"
        r"|LimitExceeded",
        "the account's quota is used up: `python -m sweeps.cluster check` on your machine shows it, and prints what "
        "asks for more",
        depends_on_type=True,
    ),
    LaunchProblem(
        r"InsufficientInstanceCapacity|InsufficientHostCapacity|InsufficientCapacity|UnfulfillableCapacity"
        r"|ZONE_RESOURCE_POOL_EXHAUSTED|does not have enough resources|STOCKOUT",
        "the cloud has no such machine left now, and Ray keeps asking: to wait less, raise max_workers of another "
        "type or of an on-demand one in the cluster file, or use another region",
        depends_on_type=True,
    ),
    LaunchProblem(
        r"SpotMaxPriceTooLow",
        "the spot price is above your limit: remove MaxPrice from the cluster file, or wait",
        depends_on_type=True,
    ),
    LaunchProblem(
        r"\bUnsupported\b|InstanceTypeNotSupported",
        "this region or zone does not offer the instance type: choose another one in the cluster file",
        depends_on_type=True,
    ),
    LaunchProblem(
        r"UnauthorizedOperation|AccessDenied|AuthFailure|PERMISSION_DENIED|HttpError 403|Forbidden",
        "the head may not start this machine: `python -m sweeps.cluster check` on your machine tests its role; "
        "organization policies may forbid it too",
    ),
    LaunchProblem(
        r"Invalid\w*|MissingParameter|HttpError 400",
        "the cloud rejects the node_config of this type: correct it in the cluster file, then `make cluster` again",
    ),
    LaunchProblem(
        r"NoCredentials|ExpiredToken|Unable to locate credentials|DefaultCredentialsError",
        "the head has no valid credentials: check its instance profile or service account",
    ),
)
"""Known problems; the first one that matches counts."""

UNKNOWN_PROBLEM_ADVICE = "see /tmp/ray/session_latest/logs/monitor.log on the head"


def find_problem(message: str) -> LaunchProblem | None:
    """Return the known problem that an error message describes; None if it is unknown.

    >>> find_problem("Node Launch Exception (VcpuLimitExceeded): You have requested more vCPU capacity").depends_on_type
    True
    >>> find_problem("the printer is on fire") is None
    True
    """
    return next((problem for problem in LAUNCH_PROBLEMS if re.search(problem.pattern, message)), None)


def advise(message: str) -> str:
    """Return what an error message means and what to do about it."""
    problem = find_problem(message)
    return UNKNOWN_PROBLEM_ADVICE if problem is None else problem.advice
