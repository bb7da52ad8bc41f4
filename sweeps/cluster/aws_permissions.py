"""Asks AWS, before anything is started, whether permissions suffice: those of the user, and those the head will have.

IAM's policy simulator evaluates policies, conditions included, without doing anything, and EC2 checks the start of a
machine on request without starting it (DryRun). The simulator does not see everything: resource policies and the
condition keys that only a real request carries are unknown to it, so a refusal that depends on them is a note.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import ClientError

from sweeps.cluster.check_result import CheckResult
from sweeps.cluster.iam import CLUSTER_TAG, AwsAccount, head_policy, role_names
from sweeps.cluster.settings import ClusterSettings
from sweeps.engine.resources.launch_errors import advise

BOOLEAN_KEYS = ("ec2:Encrypted",)
"""Condition keys whose value is a boolean."""

UP_ACTIONS = {
    "ec2": (
        *("DescribeImages", "DescribeInstances", "DescribeInstanceTypes", "DescribeKeyPairs", "DescribeSecurityGroups"),
        *("DescribeSubnets", "DescribeVpcs", "CreateKeyPair", "CreateSecurityGroup", "AuthorizeSecurityGroupIngress"),
        *("RevokeSecurityGroupIngress", "RunInstances", "CreateTags", "TerminateInstances"),
    ),
    "iam": (
        *("CreateRole", "GetRole", "PutRolePolicy", "UpdateAssumeRolePolicy", "PassRole", "CreateInstanceProfile"),
        *("GetInstanceProfile", "AddRoleToInstanceProfile"),
    ),
}
"""Actions of `ray up`, by service."""


@dataclass(frozen=True)
class IamRequest:
    """A request that a policy allows or denies."""

    action: str
    resources: tuple[str, ...]
    context: Mapping[str, str] = field(default_factory=dict)
    """Values of condition keys."""


def head_requests(
    settings: ClusterSettings, account: AwsAccount, group: str, instance_types: Iterable[str]
) -> list[IamRequest]:
    """Return the requests that the head makes to start, look at and terminate workers, and to use the bucket.

    Args:
        settings: settings of the cluster.
        account: the AWS account.
        group: id of the security group.
        instance_types: instance types of the workers.
    """

    def ec2(kind: str, owner: str = account.account_id) -> str:
        name = group if kind == "security-group" else f"{kind}-0123456789abcdef0"
        return f"arn:{account.partition}:ec2:{settings.region}:{owner}:{kind}/{name}"

    tag = {f"aws:RequestTag/{CLUSTER_TAG}": settings.cluster}
    others = ("security-group", "subnet", "key-pair", "network-interface", "spot-instances-request")
    bucket = f"arn:{account.partition}:s3:::{settings.bucket}"
    worker = f"arn:{account.partition}:iam::{account.account_id}:role/{role_names(settings)['worker']}"
    return [
        *(
            IamRequest("ec2:RunInstances", (ec2("instance"),), tag | {"ec2:InstanceType": name})
            for name in sorted(set(instance_types))
        ),
        IamRequest("ec2:RunInstances", (ec2("volume"),), tag | {"ec2:Encrypted": "true"}),
        IamRequest("ec2:RunInstances", (ec2("image", owner=""), *map(ec2, others))),
        IamRequest("ec2:CreateTags", (ec2("instance"), ec2("volume")), {"ec2:CreateAction": "RunInstances"}),
        IamRequest("ec2:TerminateInstances", (ec2("instance"),), {f"aws:ResourceTag/{CLUSTER_TAG}": settings.cluster}),
        IamRequest("ec2:DescribeInstances", ("*",)),
        IamRequest("iam:PassRole", (worker,), {"iam:PassedToService": "ec2.amazonaws.com"}),
        IamRequest("s3:ListBucket", (bucket,)),
        IamRequest("s3:GetObject", (f"{bucket}/runs/plan.json",)),
        IamRequest("s3:PutObject", (f"{bucket}/runs/plan.json",)),
    ]


def check_head_role(
    iam: Any, settings: ClusterSettings, account: AwsAccount, group: str, instance_types: Iterable[str]
) -> CheckResult:
    """Simulate the head's requests with the policy that `ray up` will give it, and with its role if that exists.

    Only the role's simulation knows the limits of the organization (SCPs) and permissions boundaries.
    """
    types = sorted(set(instance_types))
    policy = json.dumps(head_policy(settings, account, group, types))
    requests = head_requests(settings, account, group, types)
    denied = [
        refusal
        for request in requests
        for refusal in _refusals(iam.simulate_custom_policy(PolicyInputList=[policy], **_arguments(request)))
    ]
    if denied:
        return CheckResult("head's role", "missing", f"its policy (sweeps/cluster/iam.py) denies {_listed(denied)}")
    try:
        role = iam.get_role(RoleName=role_names(settings)["head"])["Role"]["Arn"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchEntity":
            raise
        return CheckResult("head's role", "ok", f"its policy allows all {len(requests)} kinds of requests")
    # The new policy is added, because `ray up` replaces that of an earlier version.
    denied = [
        refusal
        for request in requests
        for refusal in _refusals(
            iam.simulate_principal_policy(PolicySourceArn=role, PolicyInputList=[policy], **_arguments(request))
        )
    ]
    if denied:
        message = (
            f"{role} is denied {_listed(denied)}: an organization policy (SCP) or a permissions boundary forbids it"
        )
        return CheckResult("head's role", "missing", f"{message}; ask your administrator for an exception")
    return CheckResult("head's role", "ok", f"{role} may do all {len(requests)} kinds of requests")


def check_user(iam: Any, settings: ClusterSettings, account: AwsAccount, caller: str) -> CheckResult:
    """Simulate the user's own requests of `ray up`.

    Args:
        iam: boto3's IAM client.
        settings: settings of the cluster.
        account: the AWS account.
        caller: ARN of the user, as STS returns it.
    """
    kind, _, name = caller.rpartition(":")[2].partition("/")
    if kind == "root":
        return CheckResult("your rights", "note", "you are the account's root user: use an IAM user or a role instead")
    if kind == "assumed-role":
        caller = iam.get_role(RoleName=name.partition("/")[0])["Role"]["Arn"]  # with its path, which `caller` lacks
    elif kind != "user":
        return CheckResult("your rights", "note", f"could not be checked: IAM does not simulate {caller}")
    own = [f"arn:{account.partition}:iam::{account.account_id}:role/{role}" for role in role_names(settings).values()]
    own += [arn.replace(":role/", ":instance-profile/") for arn in own]
    refused: list[str] = []
    unsure: list[str] = []
    for service, actions in UP_ACTIONS.items():
        resources = {"ResourceArns": own} if service == "iam" else {}
        names = [f"{service}:{action}" for action in actions]
        answer = iam.simulate_principal_policy(PolicySourceArn=caller, ActionNames=names, MaxItems=1000, **resources)
        for name in names:
            results = [result for result in answer["EvaluationResults"] if result["EvalActionName"] == name]
            if any(result["EvalDecision"] == "allowed" for result in results):
                continue  # of roles and profiles, an action concerns one kind only
            conditional = any(result.get("MissingContextValues") for result in results)
            (unsure if conditional else refused).append(name)
    if refused:
        message = f"{caller} may not {', '.join(refused)}: ask your administrator to allow it, or let them run `ray up`"
        return CheckResult("your rights", "missing", message)
    if unsure:
        return CheckResult("your rights", "note", f"depends on conditions of your policies: {', '.join(unsure)}")
    return CheckResult("your rights", "ok", f"{caller} may do all that `ray up` does")


def check_start(ec2: Any, name: str, request: dict[str, Any]) -> CheckResult:
    """Ask EC2 whether it would start a machine, without starting it.

    Args:
        ec2: boto3's EC2 client.
        name: the node type.
        request: arguments of RunInstances.
    """
    check = f"start {name}"
    try:
        ec2.run_instances(**request, MinCount=1, MaxCount=1, DryRun=True)
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        if code == "DryRunOperation":
            return CheckResult(check, "ok", f"EC2 would start one {request['InstanceType']} for you")
        if code == "UnauthorizedOperation":
            encoded = message.partition("Encoded authorization failure message: ")[2]
            advice = "you may not start it: ask your administrator for ec2:RunInstances"
            if encoded:
                advice += f"; the reason: aws sts decode-authorization-message --encoded-message {encoded}"
            return CheckResult(check, "missing", advice)
        return CheckResult(check, "missing", f"{code}: {message}; {advise(code)}")
    raise AssertionError("EC2 has answered a dry run with a machine")


def _arguments(request: IamRequest) -> dict[str, Any]:
    entries = [
        {
            "ContextKeyName": key,
            "ContextKeyValues": [value],
            "ContextKeyType": "boolean" if key in BOOLEAN_KEYS else "string",
        }
        for key, value in request.context.items()
    ]
    return {"ActionNames": [request.action], "ResourceArns": list(request.resources), "ContextEntries": entries}


def _refusals(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return action and resource of everything that is not allowed."""
    return [
        (result["EvalActionName"], result.get("EvalResourceName", "*"))
        for result in answer["EvaluationResults"]
        if result["EvalDecision"] != "allowed"
    ]


def _listed(denied: list[tuple[str, str]]) -> str:
    resources: dict[str, list[str]] = defaultdict(list)
    for action, resource in denied:
        resources[action].append(resource)
    return ", ".join(f"{action} on {' and '.join(arns)}" for action, arns in resources.items())
