"""What does a sweep look like, from nothing, in three minutes?

    python -m sweeps.quickstart

A small network learns the handwritten digits 0 to 4 and is then transferred to the digits 5 to 9, of which it sees 30
each. Five ways of transferring compete. Real scans, real training, no network needed; what wins is not written down
anywhere beforehand.

Cost: about a minute on 2 CPU cores.
"""

import dataclasses

from sweeps.engine.cli import main
from sweeps.engine.options import Options, parse_names
from sweeps.engine.plan import Plan
from sweeps.engine.quickstart_data import TARGET_CLASSES, TRAINING_IMAGES, pretrained_weights, write_digits
from xfer.storage.local_cache import local_path

plan = Plan(
    experiment="quickstart",
    question="Which way of adapting a network that knows the digits 0 to 4 reads the digits 5 to 9 best?",
    backbones=("test_resnet",),  # timm's smallest residual network, 0.4 million parameters
    image_size=32,
    trials=14,
    epochs=8,
    edits={"augmentation": "none,randaugment"},  # a mirrored digit is none
)


def find_data(asked: Options) -> Options:
    """Put digits and pretrained weights into the storage folder, where no others are named."""
    here = local_path(asked.storage) / "quickstart"
    data = asked.data or str(write_digits(here / "digits-5-9", TARGET_CLASSES, TRAINING_IMAGES))
    size = asked.image_size or plan.image_size or 32
    files = (
        {} if asked.weights else {name: pretrained_weights(here, name, size) for name in parse_names(asked.backbone)}
    )
    weights = asked.weights or ",".join(f"{name}={file}" for name, file in files.items())
    return dataclasses.replace(asked, data=data, weights=weights)


if __name__ == "__main__":
    main(plan, __doc__, find=find_data)
