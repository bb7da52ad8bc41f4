"""Flags that commands share: which images, which network."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

from xfer import hashing
from xfer.choices import Value
from xfer.data.layouts import read_source
from xfer.data.pack import Pack, Progress, build_pack
from xfer.data.source import Source, select_classes
from xfer.models import backbones

DEFAULT_BACKBONE = "efficientnet_b0"


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which images."""
    parser.add_argument("--data", required=True, help="DIR with a folder per class, FILE.csv, hf://owner/name, ...")
    parser.add_argument("--source", default="", help="how the data are laid out; seen from the data unless given")
    parser.add_argument("--classes", default="", help="only these, separated by commas, or a number of them")
    parser.add_argument("--image-size", type=int, help="side in pixels (default: as in pretraining)")
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="folder for decoded images (default: runs)")
    parser.add_argument("--split-seed", type=int, default=0, help="decides the test part, where that is drawn")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which network."""
    parser.add_argument(
        "--backbone", default=DEFAULT_BACKBONE, metavar="NAME", help=f"timm's (default: {DEFAULT_BACKBONE})"
    )
    parser.add_argument("--weights", metavar="FILE", help="its weights; the hub's unless given")
    parser.add_argument("--backbone-args", default="", metavar="ARGS", help="further ones of it: pad_type=same,...")


def resolve_image_size(args: argparse.Namespace, backbone: str | None = None) -> int:
    """The side of the images, in pixels, for the backbone that was asked for or another one."""
    name = backbone or args.backbone
    backbones.check_name(name)
    return int(args.image_size or backbones.default_image_size(name))


def open_source(args: argparse.Namespace) -> Source:
    """The images that were asked for, not read yet."""
    classes = tuple(name.strip() for name in args.classes.split(",") if name.strip())
    found = select_classes(read_source(args.data, args.source), classes)
    for each in found.notes:
        print_note(each)
    return found


def prepare_pack(args: argparse.Namespace, source: Source, size: int) -> Pack:
    """The images of a source, decoded once."""
    found = build_pack(source, size, args.storage / "packs", progress_printer("reading images"))
    if found.skipped:
        print_note(f"images that cannot be read are skipped: {len(found.skipped)}; the first: {found.skipped[0]}")
    return found


def resolve_weights(args: argparse.Namespace) -> Path:
    """The file with the backbone's weights, from the hub where none was given."""
    file = Path(args.weights).expanduser() if args.weights else backbones.fetch_weights(args.backbone)
    if not file.is_file():
        raise ValueError(f"there is no weights file {file}")
    return file


def weights_hash(file: Path | None) -> str:
    """A weights file's content hash; empty for none."""
    return hashing.sha256_file(file) if file else ""


def parse_key_values(text: str, flag: str) -> dict[str, Value]:
    """NAME=VALUE pairs, separated by commas.

    >>> parse_key_values("pad_type=same,drop_rate=0.1", "--backbone-args")
    {'pad_type': 'same', 'drop_rate': 0.1}
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not name.strip() or not equals or not value.strip() for name, equals, value in pairs):
        raise ValueError(f"{flag} {text}: NAME=VALUE[,NAME=VALUE] is wanted")
    values = {name.strip(): _value(value.strip()) for name, _, value in pairs}
    if len(values) < len(pairs):
        raise ValueError(f"{flag} {text}: one of the names is given twice")
    return values


def print_note(text: str) -> None:
    """Say something beside the results."""
    print(f"note: {text}", file=sys.stderr)


def progress_printer(what: str) -> Progress:
    """Something to be told (done, total), which shows it on a terminal."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done >= total else "\r"
            print(f"{what}: {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    return show


def _value(text: str) -> Value:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None if text.lower() == "none" else text
    return value if value is None or isinstance(value, str | int | float | bool) else text
