"""Predict: classify photos with a trained network."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from xfer.data import file_tree
from xfer.data.image_formats import UnreadableImageError
from xfer.data.images import read_image
from xfer.storage import local_cache
from xfer.storage.object_store import as_path
from xfer.training.export import Classifier, load_classifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument(
        "--model", type=as_path, required=True, help="folder written by `train` or by a sweep, or its URI (s3://...)"
    )
    parser.add_argument("--top", type=int, default=3, help="number of classes to print (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="photos, or folders of them")


def run(args: argparse.Namespace) -> None:
    """Prints the most likely classes of each photo.

    Raises:
        ValueError: If there is no model, or none of the photos can be read.
    """
    if args.top < 1:
        raise ValueError(f"--top must be at least 1, got {args.top}")
    classifier = _load(local_cache.sync_down(args.model))
    photos = list(_find_photos(args.images))
    if not photos:
        raise ValueError(f"no photo found in {', '.join(map(str, args.images))}")
    read = 0
    for photo in photos:
        try:
            classes = _classify(classifier, photo, args.top)
        except UnreadableImageError as error:
            print(f"skipped: {photo}: {error}", file=sys.stderr)
            if args.json:
                print(json.dumps({"image": str(photo), "error": str(error)}))
            continue
        read += 1
        if args.json:
            print(json.dumps({"image": str(photo), "classes": dict(classes)}))
        else:
            print(f"{photo}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in classes))
    if not read:
        raise ValueError(f"none of the {len(photos)} photos can be read")


def _load(folder: Path) -> Classifier:
    if not (folder / "model.json").is_file():
        raise ValueError(f"{folder} contains no model.json: give the folder `model` of a run or of a sweep")
    try:
        return load_classifier(folder)
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot load the model in {folder}: it is damaged or was written by another version "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def _classify(classifier: Classifier, photo: Path, top: int) -> list[tuple[str, float]]:
    pixels = read_image(photo, classifier.image_size, classifier.value_ranges)
    probabilities = classifier.probabilities(pixels[None])[0]
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [(classifier.classes[index], float(probabilities[index])) for index in best]


def _find_photos(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            skipped: Counter[str] = Counter()
            for file in sorted(file_tree.scan(path.resolve(), follow_links=True).files, key=lambda file: file.names):
                if file.reason:
                    skipped[file.reason] += 1
                else:
                    yield path.joinpath(*file.names)
            if skipped:
                print(f"skipped in {path}: {', '.join(f'{n} {why}' for why, n in skipped.items())}", file=sys.stderr)
        elif path.is_file():
            yield path
        else:
            raise ValueError(f"no such photo or folder: {path}")
