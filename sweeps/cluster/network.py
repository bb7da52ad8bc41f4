"""The security group of a cluster: SSH from one network, all traffic among its machines, and nothing else."""

from __future__ import annotations

from typing import Any

Rule = tuple[str, int, int, str, str]
"""A rule as (protocol, first port, last port, kind of source, source)."""

SOURCE_KEYS = {
    "IpRanges": "CidrIp",
    "Ipv6Ranges": "CidrIpv6",
    "UserIdGroupPairs": "GroupId",
    "PrefixListIds": "PrefixListId",
}
"""EC2's field for each kind of source, and the key of the source in it."""


def find_vpc(ec2: Any, subnets: list[str]) -> str:
    """Return the id of the VPC that the subnets are in; without subnets, of the region's default VPC.

    Raises:
        ValueError: no subnets are given and the region has no default VPC.
    """
    if subnets:
        return str(ec2.describe_subnets(SubnetIds=subnets[:1])["Subnets"][0]["VpcId"])
    default = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not default:
        raise ValueError(
            "this region has no default VPC: create one with `aws ec2 create-default-vpc`, or set SubnetIds in every "
            "node_config"
        )
    return str(default[0]["VpcId"])


def ensure_security_group(ec2: Any, vpc: str, name: str, cluster: str, ssh_from: str) -> str:
    """Create the security group, or reset an existing one of that name to the same rules.

    Superfluous rules are revoked before missing ones are added.

    Args:
        ec2: boto3's EC2 client.
        vpc: id of the VPC.
        name: name of the group, unique in the VPC.
        cluster: name of the cluster, written as a tag.
        ssh_from: the only network that SSH is allowed from, as CIDR.

    Returns:
        The id of the group.
    """
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    existing = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    if existing:
        group, permissions = existing[0]["GroupId"], existing[0]["IpPermissions"]
    else:
        tags = [{"Key": "ray-cluster-name", "Value": cluster}, {"Key": "project", "Value": "xfer"}]
        group = ec2.create_security_group(
            GroupName=name,
            Description=f"SSH from one address, and among the machines of the Ray cluster {cluster}",
            VpcId=vpc,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
        )["GroupId"]
        permissions = []
    kind = "Ipv6Ranges" if ":" in ssh_from else "IpRanges"
    wanted: set[Rule] = {("tcp", 22, 22, kind, ssh_from), ("-1", -1, -1, "UserIdGroupPairs", group)}
    present = {rule for permission in permissions for rule in _rules(permission)}
    if superfluous := sorted(present - wanted):
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[_permission(rule) for rule in superfluous])
    if missing := sorted(wanted - present):
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[_permission(rule) for rule in missing])
    return str(group)


def _rules(permission: dict[str, Any]) -> set[Rule]:
    """Split one of EC2's permissions, which groups all sources with the same ports, into one rule per source."""
    ports = permission["IpProtocol"], permission.get("FromPort", -1), permission.get("ToPort", -1)
    return {(*ports, kind, source[key]) for kind, key in SOURCE_KEYS.items() for source in permission.get(kind, [])}


def _permission(rule: Rule) -> dict[str, Any]:
    protocol, first, last, kind, source = rule
    ports = {} if protocol == "-1" else {"FromPort": first, "ToPort": last}
    return {"IpProtocol": protocol, **ports, kind: [{SOURCE_KEYS[kind]: source}]}
