"""Ray's AWS provider, closed to the world, with machines that may do no more than they need.

Ray's own opens SSH to every address there is, gives the head all rights over EC2 and S3, and workers none, so that they
could not read the bucket. This one makes a security group and two roles first, and then lets Ray do the rest. It is
named in a cluster file as `type: external`, which means that Ray fills in no defaults: everything stands in the file.

It is imported twice: where `ray up` is typed, and on the head, whose autoscaler starts the workers.
"""

from __future__ import annotations

import copy
from typing import Any

import boto3
import click
from botocore.exceptions import BotoCoreError, ClientError
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

from sweeps.cluster import access, network
from sweeps.cluster.settings import ClusterSettings, find_placeholders, parse_settings, substitute_bucket

MANAGED_NODE_KEYS = ("SecurityGroupIds", "IamInstanceProfile", "NetworkInterfaces", "LaunchTemplate")
"""What a node_config must not hold: the first two are made here, the others could bring their own."""


class NodeProvider(AWSNodeProvider):
    """See the module."""

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Make what machines need before they can start, and fill it into the configuration.

        The same again changes nothing, and brings back what was changed by others.

        Raises:
            click.ClickException: the file is not filled in or asks for what cannot be, and nothing was made; or AWS
                refused something.
        """
        try:
            settings = parse_settings(cluster_config)
            config = prepare_aws_config(cluster_config, settings)
        except (ValueError, BotoCoreError, ClientError) as error:
            # What Ray's commands print of this is the message alone.
            raise click.ClickException(str(error)) from None
        bootstrapped: dict[str, Any] = AWSNodeProvider.bootstrap_config(config)  # type: ignore[no-untyped-call]
        # They stand in head_setup_commands and worker_setup_commands by now, and the head would add them once more.
        return bootstrapped | {"setup_commands": []}

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Ask AWS what the instance types have besides what the file says; not before it is filled in."""
        if next(find_placeholders(cluster_config["provider"]), None):
            return cluster_config  # Ray calls bootstrap_config next, which says what is missing
        filled_out: dict[str, Any] = AWSNodeProvider.fillout_available_node_types_resources(cluster_config)
        return filled_out


def prepare_aws_config(cluster_config: dict[str, Any], settings: ClusterSettings) -> dict[str, Any]:
    """A configuration with the group, the roles and the image of its machines, made where they are missing.

    Raises:
        ValueError: the image is unknown, there is no network, or a node_config holds what is made here.
    """
    config = substitute_bucket(copy.deepcopy(cluster_config), settings.bucket)
    node_configs = {name: node["node_config"] for name, node in config["available_node_types"].items()}
    for name, node_config in node_configs.items():
        if taken := [key for key in MANAGED_NODE_KEYS if key in node_config]:
            raise ValueError(f"available_node_types.{name}.node_config.{taken[0]}: this provider makes its own")
    session = boto3.Session(region_name=settings.region)
    ec2, iam = session.client("ec2"), session.client("iam")
    image = find_image_id(ec2, settings.image) if any("ImageId" not in each for each in node_configs.values()) else ""
    subnets = [subnet for node_config in node_configs.values() for subnet in node_config.get("SubnetIds", [])]
    account = access.AwsAccount(
        session.get_partition_for_region(settings.region), session.client("sts").get_caller_identity()["Account"]
    )
    vpc = network.find_vpc(ec2, subnets)
    group = network.ensure_security_group(ec2, vpc, f"{settings.cluster}-ray", settings.cluster, settings.ssh_from)
    types = [node_config["InstanceType"] for node_config in node_configs.values()]
    profiles = access.ensure_instance_profiles(iam, settings, account, group, types)
    for name, node_config in node_configs.items():
        kind = "head" if name == config["head_node_type"] else "worker"
        node_config["IamInstanceProfile"] = {"Arn": profiles[kind]}
        node_config["SecurityGroupIds"] = [group]
        node_config.setdefault("ImageId", image)
        node_config["TagSpecifications"] = _tagged(node_config.get("TagSpecifications", []), settings.cluster)
    return config


def find_image_id(ec2: Any, name: str) -> str:
    """The id that an image of Amazon's has in this region.

    An image is pinned by its name: an id is one region's, and the public parameter that names the newest image names
    another one next week. Images older than two years are still found.

    Raises:
        ValueError: no image has that name here.
    """
    where = [{"Name": "name", "Values": [name]}, {"Name": "state", "Values": ["available"]}]
    found = ec2.describe_images(Owners=["amazon"], Filters=where, IncludeDeprecated=True)["Images"] if name else []
    if not found:
        raise ValueError(
            f"no image of Amazon's is called {name!r} in this region. Those that are newer:\n"
            "  aws ec2 describe-images --owners amazon --query 'sort_by(Images,&CreationDate)[-3:].Name' \\\n"
            "    --filters 'Name=name,Values=Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04)*'\n"
            "Write one as provider.image, or an ImageId of your own into every node_config."
        )
    return str(found[0]["ImageId"])


def _tagged(specifications: list[dict[str, Any]], cluster: str) -> list[dict[str, Any]]:
    """Disks get the cluster's name too: the head may only make those that carry it. Ray names machines itself."""
    own = {"Key": access.CLUSTER_TAG, "Value": cluster}
    volumes = [tag for each in specifications if each["ResourceType"] == "volume" for tag in each["Tags"]]
    others = [each for each in specifications if each["ResourceType"] != "volume"]
    return [*others, {"ResourceType": "volume", "Tags": [own, *volumes]}]
