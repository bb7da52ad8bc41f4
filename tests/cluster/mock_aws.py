"""A mock AWS account, and the cluster file with the values that a user would fill in for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

ROOT = Path(__file__).parent.parent.parent
CLUSTER_FILE = ROOT / "ray_cluster.yaml"
IMAGE = "ami-0123456789abcdef0"
ACCOUNT, REGION, BUCKET, OFFICE = "123456789012", "us-east-1", "my-results", "203.0.113.7/32"


def filled_cluster_config(**provider: Any) -> dict[str, Any]:
    """The cluster file with its three values filled in, and any other values of `provider` replaced."""
    config: dict[str, Any] = yaml.safe_load(CLUSTER_FILE.read_text())
    config["provider"] |= {"region": REGION, "ssh_from": OFFICE, "bucket": BUCKET} | provider
    return config


def prepared_by_ray(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration that Ray passes to a provider."""
    from ray.autoscaler._private.util import prepare_config

    prepared: dict[str, Any] = prepare_config(config)
    return prepared


@contextmanager
def mock_aws_account(home: Path) -> Iterator[None]:
    """Mock an empty account with a default VPC and the image of the cluster file; `home` becomes the home directory."""
    from moto import mock_aws
    from moto.ec2.models import ec2_backends
    from moto.ec2.models.amis import Ami
    from ray.autoscaler._private.aws import config, node_provider, utils
    from ray.autoscaler._private.providers import _clear_provider_cache

    from sweeps.cluster import iam

    environment = {
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_SESSION_TOKEN": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",
    }
    home.mkdir(parents=True, exist_ok=True)
    for cache in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
        cache.cache_clear()
    _clear_provider_cache()
    with (
        patch.dict("os.environ", environment),
        patch.object(iam, "IAM_PROPAGATION_SECONDS", 0),
        patch.object(node_provider, "TAG_BATCH_DELAY", 0),
        mock_aws(),
    ):
        ec2 = ec2_backends[ACCOUNT][REGION]
        name = filled_cluster_config()["provider"]["image"]
        ec2.amis["ami-0123456789abcdef0"] = Ami(
            ec2, "ami-0123456789abcdef0", name=name, owner_alias="amazon", public=True
        )
        yield
