"""Flags that several commands share: images and network."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

from xfer import hashing
from xfer.choices import Value
from xfer.data.inspection import summary_line, unreadable
from xfer.data.layouts import read_source
from xfer.data.pack import Pack, Progress, build_pack
from xfer.data.part_names import parse_parts
from xfer.data.source import Source, select_classes
from xfer.models import backbones
from xfer.models.timm_names import alias_note, resolve_name

DEFAULT_BACKBONE = "efficientnet_b0"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select the images."""
    parser.add_argument("--data", required=True, help="DIR with a folder per class, FILE.csv, hf://owner/name, ...")
    parser.add_argument("--source", default="", help="layout of the data (default: detected from the data)")
    parser.add_argument(
        "--parts",
        default="",
        help="folders of the parts, or values of a table's part column: train=NAME[,val=NAME][,test=NAME], or none "
        "(default: by name)",
    )
    parser.add_argument(
        "--group",
        default="",
        metavar="COLUMN",
        help="column of a table that names the patient, camera, video, ... of each image, or none: a group is never in "
        "two drawn parts (default: by name)",
    )
    parser.add_argument("--follow-links", action="store_true", help="read images behind links that leave the folder")
    parser.add_argument("--classes", default="", help="only these classes, separated by commas, or a number of them")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select the images and determine how they are decoded and split."""
    add_data_arguments(parser)
    parser.add_argument("--image-size", type=int, help="side of the images in pixels (default: as in pretraining)")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="folder for decoded images (default: runs)")
    parser.add_argument("--split-seed", type=int, default=0, help="determines the test set, if it is drawn at random")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select the network."""
    parser.add_argument(
        "--backbone",
        default=DEFAULT_BACKBONE,
        type=resolve_backbone,
        metavar="NAME",
        help=f"timm's name of the network (default: {DEFAULT_BACKBONE})",
    )
    parser.add_argument("--weights", metavar="FILE", help="pretrained weights (default: from the hub)")
    parser.add_argument(
        "--backbone-args", default="", metavar="ARGS", help="additional arguments for the network: pad_type=same,..."
    )


def resolve_backbone(name: str) -> str:
    """Returns timm's current name of a network, and prints a note if it differs from the given one."""
    if note := alias_note(name):
        print_note(note)
    return resolve_name(name)


def resolve_image_size(args: argparse.Namespace, backbone: str | None = None) -> int:
    """Returns the side of the images, in pixels, for the given backbone or the one in `args`."""
    name = backbone or args.backbone
    backbones.check_name(name)
    return int(args.image_size or backbones.default_image_size(name))


def read_images(args: argparse.Namespace) -> Source:
    """Returns the images that `args` select, not decoded yet."""
    classes = tuple(name.strip() for name in args.classes.split(",") if name.strip())
    source = read_source(args.data, args.source, parse_parts(args.parts), args.follow_links, args.group)
    return select_classes(source, classes)


def open_source(args: argparse.Namespace) -> Source:
    """Returns the images that `args` select, not decoded yet, and prints notes on them."""
    source = read_images(args)
    for note in source.notes:
        print_note(note)
    return source


def prepare_pack(args: argparse.Namespace, source: Source, size: int) -> Pack:
    """Decodes the images of a source, or reuses a pack that was built before."""
    pack = build_pack(source, size, args.storage / "packs", progress_printer("reading images"))
    if pack.skipped:
        print_note(f"images skipped because they cannot be read: {len(pack.skipped)}; the first: {pack.skipped[0]}")
    if skipped := unreadable(source, pack.skipped):
        print_note(summary_line(source, skipped))
    return pack


def resolve_weights(args: argparse.Namespace) -> Path:
    """Returns the file with the backbone's weights, downloaded from the hub unless `args` names one."""
    file = Path(args.weights).expanduser() if args.weights else backbones.fetch_weights(args.backbone)
    if not file.is_file():
        raise ValueError(f"no such weights file: {file}")
    return file


def weights_hash(file: Path | None) -> str:
    """Content hash of a weights file; empty for None."""
    return hashing.sha256_file(file) if file else ""


def parse_key_values(text: str, flag: str) -> dict[str, Value]:
    """Parses comma-separated NAME=VALUE pairs; `flag` is named in error messages.

    >>> parse_key_values("pad_type=same,drop_rate=0.1", "--backbone-args")
    {'pad_type': 'same', 'drop_rate': 0.1}
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not name.strip() or not equals or not value.strip() for name, equals, value in pairs):
        raise ValueError(f"{flag}: expected NAME=VALUE[,NAME=VALUE], got {text}")
    values = {name.strip(): _value(value.strip()) for name, _, value in pairs}
    if len(values) < len(pairs):
        raise ValueError(f"{flag} {text}: a name is given twice")
    return values


def print_note(text: str) -> None:
    """Prints a note to stderr."""
    print(f"note: {text}", file=sys.stderr)


def progress_printer(label: str) -> Progress:
    """Returns a callback for (done, total) that shows progress on a terminal."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done >= total else "\r"
            print(f"{label}: {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    return show


def _value(text: str) -> Value:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None if text.lower() == "none" else text
    return value if value is None or isinstance(value, str | int | float | bool) else text
