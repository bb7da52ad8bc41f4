"""Predict: ask a trained network about photos."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from xfer.data.images import IMAGE_SUFFIXES, UnreadableImageError, read_image
from xfer.training.export import Classifier, load_classifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("--model", type=Path, required=True, help="folder that `train`, or a sweep, has written")
    parser.add_argument("--top", type=int, default=3, help="how many classes to name (default: 3)")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="photos, or folders of them")


def run(args: argparse.Namespace) -> None:
    """Say for each photo what it most likely shows.

    Raises:
        ValueError: no model, or no photo among what was given that can be read.
    """
    if args.top < 1:
        raise ValueError(f"--top {args.top}: at least 1 class must be named")
    classifier = _loaded(args.model)
    photos = list(_photos(args.images))
    if not photos:
        raise ValueError(f"there is no photo in {', '.join(map(str, args.images))}")
    read = 0
    for photo in photos:
        try:
            found = _asked(classifier, photo, args.top)
        except UnreadableImageError as error:
            print(f"skipped: {photo}: {error}", file=sys.stderr)
            if args.json:
                print(json.dumps({"image": str(photo), "error": str(error)}))
            continue
        read += 1
        if args.json:
            print(json.dumps({"image": str(photo), "classes": dict(found)}))
        else:
            print(f"{photo}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in found))
    if not read:
        raise ValueError(f"none of the {len(photos)} photos can be read")


def _loaded(folder: Path) -> Classifier:
    if not (folder / "model.json").is_file():
        raise ValueError(f"{folder} holds no model.json: give the folder `model` of a run or of a sweep")
    try:
        return load_classifier(folder)
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"the model in {folder} cannot be loaded; it is damaged, or was written by another version "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


def _asked(classifier: Classifier, photo: Path, top: int) -> list[tuple[str, float]]:
    probabilities = classifier.probabilities(read_image(photo, classifier.image_size)[None])[0]
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [(classifier.classes[place], float(probabilities[place])) for place in best]


def _photos(given: list[Path]) -> Iterator[Path]:
    for path in given:
        if path.is_dir():
            yield from sorted(
                each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES and each.is_file()
            )
        elif path.is_file():
            yield path
        else:
            raise ValueError(f"there is no photo {path}")
