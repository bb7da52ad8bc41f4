"""Advise: recommend strategies from measurements of a sample of the images, before any training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xfer.advice import zero_shot
from xfer.advice.advisor import advise
from xfer.advice.dataset_profile import percent
from xfer.advice.zero_effort import frozen_feature_rows
from xfer.advice.zero_shot import zero_shot_rows
from xfer.choices import Value
from xfer.commands import shared
from xfer.data.pack import Pack
from xfer.feature_extraction.feature_cache import FeatureCache
from xfer.feature_extraction.model_split import split_at_classifier
from xfer.measure.intervals import wilson_interval
from xfer.measure.zero_effort import row_label
from xfer.recipe import closed_form_values, recipe_from_dict
from xfer.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    shared.add_image_arguments(parser)
    shared.add_network_arguments(parser)
    parser.add_argument(
        "--zero-shot",
        default="",
        metavar="NETWORK",
        help=f"image-text network whose zero-shot accuracy is measured: {zero_shot.FORMS} (pip install "
        f"'xfer[zero-shot]'; the class names must be words)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Measures the images and prints the advice, and what classifiers reach for which no network is trained.

    Features of the network are cached in the storage, where a sweep on the same data finds them.
    """
    if args.zero_shot:
        zero_shot.check_network(args.zero_shot)
    size, file = shared.resolve_image_size(args), shared.resolve_weights(args)
    backbone_args = shared.parse_key_values(args.backbone_args, "--backbone-args")
    pack = shared.prepare_pack(args, shared.open_source(args), size)
    probe = _probe(args, pack, file, backbone_args)
    features = probe.inputs.frozen_features(split_at_classifier(probe.model))
    progress = shared.progress_printer("measuring")
    advice = advise(pack, args.backbone, file, backbone_args, args.split_seed, progress=progress, features=features)
    rows = [*frozen_feature_rows(features, probe.split, "val", args.split_seed)]
    if args.zero_shot:
        try:
            rows += zero_shot_rows(args.zero_shot, pack, probe.split.val)
        except ValueError as error:
            shared.print_note(str(error))
    measured = [{**row, **_accuracy(row)} for row in rows]
    if args.json:
        print(json.dumps({**advice.as_dict(), "without_training": measured}, indent=1))
    else:
        print("\n".join((*advice.lines(), "", *_lines(measured))))


def _probe(args: argparse.Namespace, pack: Pack, file: Path, backbone_args: dict[str, Value]) -> Run:
    """Return a run of a logistic probe, whose frozen features are those that the probes of a sweep read."""
    recipe = recipe_from_dict(
        {
            **closed_form_values(),
            "strategy": {"name": "logistic_probe"},
            "data": pack.hash,
            "classes": len(pack.classes),
            "image_size": pack.image_size,
            "backbone": args.backbone,
            "backbone_args": backbone_args,
            "weights": shared.weights_hash(file),
            "split_seed": args.split_seed,
            "seed": args.split_seed,
        }
    )
    probe = Run(recipe, pack, file, features=FeatureCache(args.storage / "features"))
    probe.set_pace(0)  # freezes everything below the head
    return probe


def _accuracy(row: dict[str, Any]) -> dict[str, float]:
    accuracy = row["correct"] / row["images"]
    low, high = wilson_interval(accuracy, row["images"])
    return {"accuracy": accuracy, "low": low, "high": high}


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    images, train_images = rows[0]["images"], rows[0]["train_images"]
    yield f"Without training a network: {train_images:,} training images, {images:,} validation images, 95% interval"
    for row in rows:
        interval = f"{percent(row['low'])} to {percent(row['high'])}"
        yield f"  {row_label(row):<24}{percent(row['accuracy']):>6}   {interval}"
