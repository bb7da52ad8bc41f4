"""A stand-in for AWS, and the cluster file for it as somebody would have filled it in."""

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
    """The file with its three values, and other values of its provider where given."""
    config: dict[str, Any] = yaml.safe_load(CLUSTER_FILE.read_text())
    config["provider"] |= {"region": REGION, "ssh_from": OFFICE, "bucket": BUCKET} | provider
    return config


def prepared_by_ray(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray hands to a provider."""
    from ray.autoscaler._private.util import prepare_config

    prepared: dict[str, Any] = prepare_config(config)
    return prepared


@contextmanager
def mock_aws_account(home: Path) -> Iterator[None]:
    """An empty account with a default network and the image that the file names; `home` is the user's folder."""
    from moto import mock_aws
    from moto.ec2.models import ec2_backends
    from moto.ec2.models.amis import Ami
    from ray.autoscaler._private.aws import config, node_provider, utils
    from ray.autoscaler._private.providers import _clear_provider_cache

    from sweeps.cluster import access

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
        patch.object(access, "IAM_PROPAGATION_SECONDS", 0),
        patch.object(node_provider, "TAG_BATCH_DELAY", 0),
        mock_aws(),
    ):
        ec2 = ec2_backends[ACCOUNT][REGION]
        name = filled_cluster_config()["provider"]["image"]
        ec2.amis["ami-0123456789abcdef0"] = Ami(
            ec2, "ami-0123456789abcdef0", name=name, owner_alias="amazon", public=True
        )
        yield
