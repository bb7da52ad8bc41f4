"""Advise: what to try on some images, in seconds and before anything is trained."""

from __future__ import annotations

import argparse
import json

from xfer.advice.advisor import advise
from xfer.commands import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    shared.add_image_arguments(parser)
    shared.add_network_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace) -> None:
    """Measure, and say what follows."""
    size, file = shared.resolve_image_size(args), shared.resolve_weights(args)
    backbone_args = shared.parse_key_values(args.backbone_args, "--backbone-args")
    pack = shared.prepare_pack(args, shared.open_source(args), size)
    found = advise(
        pack, args.backbone, file, backbone_args, args.split_seed, progress=shared.progress_printer("measuring")
    )
    print(json.dumps(found.as_dict(), indent=1) if args.json else found)
