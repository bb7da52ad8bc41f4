"""Advise: recommend strategies from measurements of a sample of the images, before any training."""

from __future__ import annotations

import argparse
import json

from xfer.advice.advisor import advise
from xfer.commands import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    shared.add_image_arguments(parser)
    shared.add_network_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Measures the images and prints the advice."""
    size, file = shared.resolve_image_size(args), shared.resolve_weights(args)
    backbone_args = shared.parse_key_values(args.backbone_args, "--backbone-args")
    pack = shared.prepare_pack(args, shared.open_source(args), size)
    advice = advise(
        pack, args.backbone, file, backbone_args, args.split_seed, progress=shared.progress_printer("measuring")
    )
    print(json.dumps(advice.as_dict(), indent=1) if args.json else advice)
