"""IAM roles of a cluster's machines: one for the head, another for the workers.

Both roles read and write one bucket. The head may also start, tag and terminate machines, but only of the cluster's own
instance types, in its own security group and with the workers' role, and it may terminate only machines tagged with the
cluster's name. No action is allowed by a wildcard. Tags make this possible: a machine cannot be started without the
cluster's name as a tag.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from sweeps.cluster.settings import ClusterSettings

CLUSTER_TAG = "ray-cluster-name"
"""Tag by which Ray recognizes the machines of a cluster."""

IAM_PROPAGATION_SECONDS = 15
"""Seconds to wait after creating a role: AWS needs them to propagate it and offers no way to check."""

EC2_TRUST_POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": ["sts:AssumeRole"]}],
}
"""Trust policy that allows EC2 machines to assume a role."""

SPOT_ROLE = "AWSServiceRoleForEC2Spot"
"""Role of AWS's own, which every account needs before it can start spot machines."""


@dataclass(frozen=True)
class AwsAccount:
    """The parts of an ARN that are the same for a whole account: arn:<partition>:...:<account_id>:..."""

    partition: str
    """`aws`, `aws-cn` or `aws-us-gov`."""
    account_id: str


def role_names(settings: ClusterSettings) -> dict[str, str]:
    """Return the names of the two roles. They include the region, because IAM names are global.

    >>> role_names(ClusterSettings("xfer", "us-east-1", "", "", (), ""))
    {'head': 'xfer-us-east-1-head', 'worker': 'xfer-us-east-1-worker'}
    """
    return {kind: f"{settings.cluster}-{settings.region}-{kind}" for kind in ("head", "worker")}


def worker_policy(settings: ClusterSettings, account: AwsAccount) -> dict[str, Any]:
    """Return the workers' policy: read, write and list the results bucket; read and list the data buckets."""

    def s3(names: tuple[str, ...], suffix: str = "") -> list[str]:
        return [f"arn:{account.partition}:s3:::{name}{suffix}" for name in names]

    results, data = (settings.bucket,), settings.data_buckets
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    statements = [
        _allow("List", ["s3:ListBucket", "s3:GetBucketLocation"], s3(results + data)),
        _allow("Results", [*objects, "s3:ListMultipartUploadParts"], s3(results, "/*")),
    ]
    if data:
        statements.append(_allow("Data", ["s3:GetObject"], s3(data, "/*")))
    return {"Version": "2012-10-17", "Statement": statements}


def head_policy(
    settings: ClusterSettings, account: AwsAccount, group: str, instance_types: list[str]
) -> dict[str, Any]:
    """Return the head's policy: what workers may do, plus starting, tagging and terminating the cluster's machines.

    Args:
        settings: settings of the cluster.
        account: the AWS account.
        group: id of the security group.
        instance_types: instance types of all node types; the head cannot start any other.
    """

    def ec2(kind: str, name: str = "*", owner: str = account.account_id) -> str:
        return f"arn:{account.partition}:ec2:{settings.region}:{owner}:{kind}/{name}"

    machines, disks = ec2("instance"), ec2("volume")
    worker = f"arn:{account.partition}:iam::{account.account_id}:role/{role_names(settings)['worker']}"
    # The ARN of a public image names no account, that of a private image names its owner.
    used = [ec2("image", owner=""), ec2("image"), ec2("security-group", group), ec2("subnet"), ec2("key-pair")]
    used += [ec2("network-interface"), ec2("spot-instances-request")]
    tagged = {f"aws:RequestTag/{CLUSTER_TAG}": settings.cluster}
    own_types = {"ec2:InstanceType": sorted(set(instance_types))}
    statements = [
        _allow("Look", ["ec2:DescribeInstances"], ["*"]),  # AWS does not support restricting it
        _allow("Start", ["ec2:RunInstances"], [machines], StringEquals=tagged | own_types),
        _allow("StartDisks", ["ec2:RunInstances"], [disks], StringEquals=tagged, Bool={"ec2:Encrypted": "true"}),
        _allow("StartWith", ["ec2:RunInstances"], used),
        _allow("TagAtStart", ["ec2:CreateTags"], [machines, disks], StringEquals={"ec2:CreateAction": "RunInstances"}),
        _allow(
            "OwnMachines",
            ["ec2:CreateTags", "ec2:TerminateInstances"],
            [machines],
            StringEquals={f"aws:ResourceTag/{CLUSTER_TAG}": settings.cluster},
        ),
        _allow("WorkerRole", ["iam:PassRole"], [worker], StringEquals={"iam:PassedToService": "ec2.amazonaws.com"}),
    ]
    return {"Version": "2012-10-17", "Statement": worker_policy(settings, account)["Statement"] + statements}


def ensure_instance_profile(iam: Any, name: str, cluster: str, policy: dict[str, Any]) -> tuple[str, bool]:
    """Create the role and its instance profile, both called `name`, or update existing ones to the policy.

    Args:
        iam: boto3's IAM client.
        name: name of the role and of the profile.
        cluster: name of the cluster, written as a tag.
        policy: the role's only policy.

    Returns:
        The profile's ARN, and whether anything was created, which AWS needs seconds to propagate.
    """
    tags = [{"Key": CLUSTER_TAG, "Value": cluster}]
    created = False
    try:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2_TRUST_POLICY), Tags=tags)
        created = True
    except iam.exceptions.EntityAlreadyExistsException:
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(EC2_TRUST_POLICY))
    iam.put_role_policy(RoleName=name, PolicyName="xfer", PolicyDocument=json.dumps(policy))
    try:
        iam.create_instance_profile(InstanceProfileName=name, Tags=tags)
        created = True
    except iam.exceptions.EntityAlreadyExistsException:
        pass
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    if name not in [role["RoleName"] for role in profile["Roles"]]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        created = True
    return str(profile["Arn"]), created


def ensure_instance_profiles(
    iam: Any, settings: ClusterSettings, account: AwsAccount, group: str, instance_types: list[str]
) -> dict[str, str]:
    """Create or update both instance profiles, and the account's role for spot machines.

    Returns:
        The ARN of the instance profile by kind of machine: `head` and `worker`.
    """
    policies = {
        "worker": worker_policy(settings, account),
        "head": head_policy(settings, account, group, instance_types),
    }
    names = role_names(settings)
    profiles = {
        kind: ensure_instance_profile(iam, names[kind], settings.cluster, policy) for kind, policy in policies.items()
    }
    if _create_spot_role(iam) or any(created for _, created in profiles.values()):
        time.sleep(IAM_PROPAGATION_SECONDS)
    return {kind: arn for kind, (arn, _) in profiles.items()}


def _create_spot_role(iam: Any) -> bool:
    """Create AWS's role for spot machines, which the head itself may not, and return whether it was missing."""
    try:
        iam.get_role(RoleName=SPOT_ROLE)
        return False
    except iam.exceptions.NoSuchEntityException:
        pass
    try:
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except (iam.exceptions.InvalidInputException, iam.exceptions.EntityAlreadyExistsException):
        return False  # another process created it meanwhile
    return True


def _allow(name: str, actions: list[str], resources: list[str], **condition: dict[str, Any]) -> dict[str, Any]:
    """Return a policy statement; `condition` is keyed by IAM's condition operators."""
    statement = {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": condition} if condition else {})
