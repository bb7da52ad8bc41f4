"""Advise: what to try on some images, in seconds and before anything is trained."""

from __future__ import annotations

import argparse
import json

from xfer.advice.advisor import advise
from xfer.commands import shared


def add(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    shared.add_images(parser)
    shared.add_network(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(asked: argparse.Namespace) -> None:
    """Measure, and say what follows."""
    size, file = shared.image_size(asked), shared.weights(asked)
    args = shared.named(asked.backbone_args, "--backbone-args")
    pack = shared.pack(asked, shared.source(asked), size)
    found = advise(pack, asked.backbone, file, args, asked.split_seed, progress=shared.progress("measuring"))
    print(json.dumps(found.as_dict(), indent=1) if asked.json else found)
