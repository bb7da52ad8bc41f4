"""What does a sweep look like, from nothing, in three minutes?

    python -m sweeps.quickstart

A small network learns the handwritten digits 0 to 4 and is then transferred to the digits 5 to 9, with 30 images of
each. Five ways of transferring compete. The scans and the training are real, no network access is needed, and the
winner is not known in advance.

Cost: about a minute on 2 CPU cores.
"""

import dataclasses

from sweeps.engine.cli import main
from sweeps.engine.options import CliOptions
from sweeps.engine.plan import Plan
from sweeps.engine.quickstart_data import TARGET_CLASSES, TRAINING_IMAGES, pretrained_weights, write_digits
from xfer.models.panel import AUTO
from xfer.storage.local_cache import local_path

plan = Plan(
    experiment="quickstart",
    question="Which way of adapting a network that knows the digits 0 to 4 reads the digits 5 to 9 best?",
    backbones=("test_resnet",),  # timm's smallest residual network, 0.4 million parameters
    image_size=32,
    trials=14,
    epochs=8,
    edits={"augmentation": "none,randaugment"},  # a mirrored digit is not a digit
)


def find_data(requested: Plan, options: CliOptions) -> Plan:
    """Write the digits and pretrained weights into the storage, unless others are given."""
    folder = local_path(options.storage) / "quickstart"
    data = requested.data or str(write_digits(folder / "digits-5-9", TARGET_CLASSES, TRAINING_IMAGES))
    size = requested.image_size or 32
    weights = requested.weights or {
        name: str(pretrained_weights(folder, name, size)) for name in requested.backbones if name != AUTO
    }
    return dataclasses.replace(requested, data=data, weights=weights)


if __name__ == "__main__":
    main(plan, __doc__, find=find_data)
