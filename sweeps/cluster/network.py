"""The security group of a cluster: SSH from one address, everything among its machines, and nothing else."""

from __future__ import annotations

from typing import Any

Rule = tuple[str, int, int, str, str]
"""Protocol, first and last port, kind of source, source."""

SOURCE_KEYS = {
    "IpRanges": "CidrIp",
    "Ipv6Ranges": "CidrIpv6",
    "UserIdGroupPairs": "GroupId",
    "PrefixListIds": "PrefixListId",
}
"""Where EC2 lists the sources of a rule, and what it calls one."""


def find_vpc(ec2: Any, subnets: list[str]) -> str:
    """The network that the subnets are in; without subnets the region's default one.

    Raises:
        ValueError: there is none.
    """
    if subnets:
        return str(ec2.describe_subnets(SubnetIds=subnets[:1])["Subnets"][0]["VpcId"])
    default = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not default:
        raise ValueError(
            "this region has no default VPC: make one with `aws ec2 create-default-vpc`, or name SubnetIds in every "
            "node_config"
        )
    return str(default[0]["VpcId"])


def ensure_security_group(ec2: Any, vpc: str, name: str, cluster: str, ssh_from: str) -> str:
    """Make the security group, or bring one of that name to the same rules; its id.

    Whatever else was let in before is let in no more: rules are removed before others are added.

    Args:
        ec2: boto3's client.
        vpc: id of the network.
        name: name of the group, unique in the network.
        cluster: what it is tagged with.
        ssh_from: the only network that SSH is let in from, as CIDR.
    """
    where = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
    found = ec2.describe_security_groups(Filters=where)["SecurityGroups"]
    if found:
        group, before = found[0]["GroupId"], found[0]["IpPermissions"]
    else:
        tags = [{"Key": "ray-cluster-name", "Value": cluster}, {"Key": "project", "Value": "xfer"}]
        group = ec2.create_security_group(
            GroupName=name,
            Description=f"SSH from one address, and among the machines of the Ray cluster {cluster}",
            VpcId=vpc,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
        )["GroupId"]
        before = []
    kind = "Ipv6Ranges" if ":" in ssh_from else "IpRanges"
    wanted: set[Rule] = {("tcp", 22, 22, kind, ssh_from), ("-1", -1, -1, "UserIdGroupPairs", group)}
    present = {rule for permission in before for rule in _rules(permission)}
    if superfluous := sorted(present - wanted):
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[_permission(rule) for rule in superfluous])
    if missing := sorted(wanted - present):
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[_permission(rule) for rule in missing])
    return str(group)


def _rules(permission: dict[str, Any]) -> set[Rule]:
    """EC2 bundles what has the same ports; here each source is a rule of its own."""
    ports = permission["IpProtocol"], permission.get("FromPort", -1), permission.get("ToPort", -1)
    return {
        (*ports, kind, source[called]) for kind, called in SOURCE_KEYS.items() for source in permission.get(kind, [])
    }


def _permission(rule: Rule) -> dict[str, Any]:
    protocol, first, last, kind, source = rule
    ports = {} if protocol == "-1" else {"FromPort": first, "ToPort": last}
    return {"IpProtocol": protocol, **ports, kind: [{SOURCE_KEYS[kind]: source}]}
