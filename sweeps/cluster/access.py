"""What the machines of a cluster may do in the AWS account: a role for the head, another for the workers.

Both read and write one bucket. The head also starts, tags and ends machines, but only of the cluster's own instance
types, in its own security group, with the workers' role; and it ends only what carries the cluster's name. No action is
named with a wildcard. Tags are the key to this: a machine cannot be started without the cluster's name on it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from sweeps.cluster.settings import ClusterSettings

CLUSTER_TAG = "ray-cluster-name"
"""The tag that Ray knows the machines of a cluster by."""

IAM_PROPAGATION_SECONDS = 15
"""IAM tells the rest of AWS about a new role within seconds, and has no way to ask whether it has."""

EC2_TRUST_POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": ["sts:AssumeRole"]}],
}
SPOT_ROLE = "AWSServiceRoleForEC2Spot"


@dataclass(frozen=True)
class AwsAccount:
    """Where resources are named: arn:<partition>:...:<number>:..."""

    partition: str
    """`aws`, or `aws-cn` and the like."""
    account_id: str


def role_names(settings: ClusterSettings) -> dict[str, str]:
    """The names of the two roles; IAM knows no regions, so they carry it.

    >>> role_names(ClusterSettings("xfer", "us-east-1", "", "", (), ""))
    {'head': 'xfer-us-east-1-head', 'worker': 'xfer-us-east-1-worker'}
    """
    return {kind: f"{settings.cluster}-{settings.region}-{kind}" for kind in ("head", "worker")}


def worker_policy(settings: ClusterSettings, account: AwsAccount) -> dict[str, Any]:
    """Objects of the bucket, and the names of those in it; of data buckets only reading."""

    def s3(names: tuple[str, ...], suffix: str = "") -> list[str]:
        return [f"arn:{account.partition}:s3:::{name}{suffix}" for name in names]

    own, read = (settings.bucket,), settings.data_buckets
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    statements = [
        _allow("List", ["s3:ListBucket", "s3:GetBucketLocation"], s3(own + read)),
        _allow("Results", [*objects, "s3:ListMultipartUploadParts"], s3(own, "/*")),
    ]
    if read:
        statements.append(_allow("Data", ["s3:GetObject"], s3(read, "/*")))
    return {"Version": "2012-10-17", "Statement": statements}


def head_policy(
    settings: ClusterSettings, account: AwsAccount, group: str, instance_types: list[str]
) -> dict[str, Any]:
    """What the workers may, and the life of the cluster's machines.

    Args:
        settings: of the cluster.
        account: whose it is.
        group: id of the security group.
        instance_types: of all node types; the head can start no others.
    """

    def ec2(kind: str, name: str = "*", owner: str = account.account_id) -> str:
        return f"arn:{account.partition}:ec2:{settings.region}:{owner}:{kind}/{name}"

    machines, disks = ec2("instance"), ec2("volume")
    worker = f"arn:{account.partition}:iam::{account.account_id}:role/{role_names(settings)['worker']}"
    # In the address of an image stands no account, or its owner's where it is one's own.
    around = [ec2("image", owner=""), ec2("image"), ec2("security-group", group), ec2("subnet"), ec2("key-pair")]
    around += [ec2("network-interface"), ec2("spot-instances-request")]
    named = {f"aws:RequestTag/{CLUSTER_TAG}": settings.cluster}
    kinds = {"ec2:InstanceType": sorted(set(instance_types))}
    statements = [
        _allow("Look", ["ec2:DescribeInstances"], ["*"]),  # it cannot be restricted to some
        _allow("Start", ["ec2:RunInstances"], [machines], StringEquals=named | kinds),
        _allow("StartDisks", ["ec2:RunInstances"], [disks], StringEquals=named, Bool={"ec2:Encrypted": "true"}),
        _allow("StartWith", ["ec2:RunInstances"], around),
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
    """Make the role and its instance profile, both called `name`, or bring those that exist to the policy.

    Returns:
        The profile's address (ARN), and whether something was made that AWS needs seconds to learn of.
    """
    tags = [{"Key": CLUSTER_TAG, "Value": cluster}]
    made = False
    try:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2_TRUST_POLICY), Tags=tags)
        made = True
    except iam.exceptions.EntityAlreadyExistsException:
        iam.update_assume_role_policy(RoleName=name, PolicyDocument=json.dumps(EC2_TRUST_POLICY))
    iam.put_role_policy(RoleName=name, PolicyName="xfer", PolicyDocument=json.dumps(policy))
    try:
        iam.create_instance_profile(InstanceProfileName=name, Tags=tags)
        made = True
    except iam.exceptions.EntityAlreadyExistsException:
        pass
    profile = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
    if name not in [role["RoleName"] for role in profile["Roles"]]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        made = True
    return str(profile["Arn"]), made


def ensure_instance_profiles(
    iam: Any, settings: ClusterSettings, account: AwsAccount, group: str, instance_types: list[str]
) -> dict[str, str]:
    """Both instance profiles, by kind of machine, and the account's role for spot machines."""
    policies = {
        "worker": worker_policy(settings, account),
        "head": head_policy(settings, account, group, instance_types),
    }
    names = role_names(settings)
    put = {
        kind: ensure_instance_profile(iam, names[kind], settings.cluster, policy) for kind, policy in policies.items()
    }
    made = _put_spot_role(iam) or any(made for _, made in put.values())
    if made:
        time.sleep(IAM_PROPAGATION_SECONDS)
    return {kind: arn for kind, (arn, _) in put.items()}


def _put_spot_role(iam: Any) -> bool:
    """Without this role of AWS's own no spot machine starts, and the head may not make it; was it missing?"""
    try:
        iam.get_role(RoleName=SPOT_ROLE)
        return False
    except iam.exceptions.NoSuchEntityException:
        pass
    try:
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
    except (iam.exceptions.InvalidInputException, iam.exceptions.EntityAlreadyExistsException):
        return False  # somebody else was faster
    return True


def _allow(name: str, actions: list[str], resources: list[str], **where: dict[str, Any]) -> dict[str, Any]:
    """A statement; `where` is its condition, by IAM's operators."""
    statement = {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources}
    return statement | ({"Condition": where} if where else {})
