"""What does a sweep look like, from nothing, in three minutes?

    python -m sweeps.quickstart

A small network learns printed letters and is then transferred to handwritten digits, with 8 training images of each.
Ways of transferring it compete with each other and with training from scratch. The digits are real scans, placed at
random in the image; no network access is needed, and the winner is not known in advance.

Cost: an estimated three minutes on 2 CPU cores.
"""

import dataclasses

from sweeps.engine.cli import main
from sweeps.engine.options import CliOptions
from sweeps.engine.plan import Plan
from sweeps.engine.quickstart_data import pretrained_weights, write_digits
from xfer.models.panel import AUTO
from xfer.storage.local_cache import local_path

plan = Plan(
    experiment="quickstart",
    question="Which way of adapting a network that has learned printed letters recognizes handwritten digits best?",
    backbones=("test_resnet",),  # timm's smallest residual network, 0.4 million parameters
    image_size=32,
    trials=10,
    edits={"augmentation": "none,randaugment"},  # a mirrored digit is not a digit
)


def find_data(requested: Plan, options: CliOptions) -> Plan:
    """Write the digits and pretrained weights into the storage, unless others are given."""
    folder = local_path(options.storage) / "quickstart"
    data = requested.data or str(write_digits(folder / "digits"))
    size = requested.image_size or 32
    weights = requested.weights or {
        name: str(pretrained_weights(folder, name, size)) for name in requested.backbones if name != AUTO
    }
    return dataclasses.replace(requested, data=data, weights=weights)


if __name__ == "__main__":
    main(plan, __doc__, find=find_data)
