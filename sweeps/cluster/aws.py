"""Ray's AWS node provider with a closed network and least-privilege machines.

Ray's own provider opens SSH to the whole internet, gives the head full rights over EC2 and S3, and gives workers none,
so that they could not read the bucket. This provider first creates a security group and two roles, then leaves the rest
to Ray, except that it starts another type of worker if EC2 has none of the requested one (`fallback`). A cluster file
selects it with `type: external`, for which Ray fills in no defaults: the file must be complete.

The module is imported in two places: where `ray up` is run, and on the head, whose autoscaler starts the workers.
"""

from __future__ import annotations

import copy
from typing import Any

import boto3
import click
from botocore.exceptions import BotoCoreError, ClientError
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

from sweeps.cluster import iam, network
from sweeps.cluster.fallback import TypeFallback
from sweeps.cluster.settings import ClusterSettings, find_placeholders, parse_settings, substitute_bucket

MANAGED_NODE_KEYS = ("SecurityGroupIds", "IamInstanceProfile", "NetworkInterfaces", "LaunchTemplate")
"""Keys that a node_config must not set: the first two are created here, the other two could override them."""


class NodeProvider(TypeFallback, AWSNodeProvider):
    """Creates the security group and the roles before Ray starts machines; see the module."""

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Create what machines need before they can start, and add it to the configuration.

        Idempotent: a second call for the same file changes nothing, except that it undoes manual changes. Its own
        result is returned unchanged, without a request to AWS: `ray exec --stop` and `ray submit --stop` bootstrap the
        result again on the head, whose role may not read security groups and roles.

        Args:
            cluster_config: the cluster file, as Ray has prepared it.

        Returns:
            The configuration from which Ray starts machines.

        Raises:
            click.ClickException: the file is incomplete or invalid, in which case nothing was created; or AWS denied a
                request.
        """
        if is_bootstrapped(cluster_config):
            return cluster_config
        try:
            settings = parse_settings(cluster_config)
            config = prepare_aws_config(cluster_config, settings)
        except (ValueError, BotoCoreError, ClientError) as error:
            # Ray's commands print only the message of this exception.
            raise click.ClickException(str(error)) from None
        bootstrapped: dict[str, Any] = AWSNodeProvider.bootstrap_config(config)  # type: ignore[no-untyped-call]
        # Ray has merged them into head_setup_commands and worker_setup_commands; the head would add them a second time.
        return bootstrapped | {"setup_commands": []}

    @staticmethod
    def fillout_available_node_types_resources(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Add the resources that AWS lists for each instance type, to a file that is filled in and not bootstrapped."""
        if next(find_placeholders(cluster_config["provider"]), None) or is_bootstrapped(cluster_config):
            return cluster_config  # Ray calls bootstrap_config next, which reports what is missing
        filled_out: dict[str, Any] = AWSNodeProvider.fillout_available_node_types_resources(cluster_config)
        return filled_out


def is_bootstrapped(cluster_config: dict[str, Any]) -> bool:
    """Return whether `NodeProvider.bootstrap_config` has returned this configuration."""
    try:
        names = iam.role_names(parse_settings(cluster_config))
    except ValueError:  # still to be filled in
        return False

    def has_profile(name: str, node_config: dict[str, Any]) -> bool:
        kind = "head" if name == cluster_config["head_node_type"] else "worker"
        profile = node_config.get("IamInstanceProfile", {}).get("Arn", "")
        return "SecurityGroupIds" in node_config and str(profile).endswith(f":instance-profile/{names[kind]}")

    return all(has_profile(name, node["node_config"]) for name, node in cluster_config["available_node_types"].items())


def prepare_aws_config(cluster_config: dict[str, Any], settings: ClusterSettings) -> dict[str, Any]:
    """Return the configuration with security group, roles and image filled in; creates those that do not exist.

    Args:
        cluster_config: the cluster file; it is not modified.
        settings: its parsed settings.

    Raises:
        ValueError: the image is unknown, there is no VPC, or a node_config sets a key that is managed here.
    """
    config = substitute_bucket(copy.deepcopy(cluster_config), settings.bucket)
    node_configs = {name: node["node_config"] for name, node in config["available_node_types"].items()}
    for name, node_config in node_configs.items():
        if managed := [key for key in MANAGED_NODE_KEYS if key in node_config]:
            raise ValueError(f"available_node_types.{name}.node_config.{managed[0]}: remove it, this provider sets it")
    session = boto3.Session(region_name=settings.region)
    ec2 = session.client("ec2")
    needs_image = any("ImageId" not in node for node in node_configs.values())
    image = find_image(ec2, settings.image)["ImageId"] if needs_image else ""
    subnets = [subnet for node_config in node_configs.values() for subnet in node_config.get("SubnetIds", [])]
    account = iam.AwsAccount(
        session.get_partition_for_region(settings.region), session.client("sts").get_caller_identity()["Account"]
    )
    vpc = network.find_vpc(ec2, subnets)
    group = network.ensure_security_group(ec2, vpc, f"{settings.cluster}-ray", settings.cluster, settings.ssh_from)
    types = [node_config["InstanceType"] for node_config in node_configs.values()]
    profiles = iam.ensure_instance_profiles(session.client("iam"), settings, account, group, types)
    for name, node_config in node_configs.items():
        kind = "head" if name == config["head_node_type"] else "worker"
        node_config["IamInstanceProfile"] = {"Arn": profiles[kind]}
        node_config["SecurityGroupIds"] = [group]
        node_config.setdefault("ImageId", image)
        node_config["TagSpecifications"] = tag_volumes(node_config.get("TagSpecifications", []), settings.cluster)
    return config


def find_image(ec2: Any, name: str) -> dict[str, Any]:
    """Return the description of an image of Amazon's in the client's region.

    Images are pinned by name: an id is valid in one region only, and the public parameter for the newest image changes
    every week. Deprecated images, which are older than two years, are found too.

    Args:
        ec2: boto3's EC2 client.
        name: name of the image; with `*` for any text, the newest image whose name matches.

    Raises:
        ValueError: no available image in this region has that name.
    """
    filters = [{"Name": "name", "Values": [name]}, {"Name": "state", "Values": ["available"]}]
    images = ec2.describe_images(Owners=["amazon"], Filters=filters, IncludeDeprecated=True)["Images"] if name else []
    if not images:
        raise ValueError(
            f"no image of Amazon's is called {name!r} in this region. List the newest ones:\n"
            "  aws ec2 describe-images --owners amazon --query 'sort_by(Images,&CreationDate)[-3:].Name' \\\n"
            "    --filters 'Name=name,Values=Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04)*'\n"
            "Write one of them as provider.image, or set your own ImageId in every node_config."
        )
    newest: dict[str, Any] = max(images, key=lambda image: str(image["CreationDate"]))
    return newest


def tag_volumes(specifications: list[dict[str, Any]], cluster: str) -> list[dict[str, Any]]:
    """Tag volumes with the cluster's name, without which the head may not create them. Ray tags the machines."""
    own = {"Key": iam.CLUSTER_TAG, "Value": cluster}
    volumes = [tag for item in specifications if item["ResourceType"] == "volume" for tag in item["Tags"]]
    others = [item for item in specifications if item["ResourceType"] != "volume"]
    return [*others, {"ResourceType": "volume", "Tags": [own, *volumes]}]
