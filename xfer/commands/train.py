"""Train: train one recipe, without a sweep."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xfer.choices import Choice, Value, choose, default_parameters, unknown_name_message
from xfer.commands import shared
from xfer.data.pack import Pack, build_pack
from xfer.data.split import split_pack
from xfer.hyperparameters import DEFAULT_EPOCHS, NUMBERS, OPTIMIZERS, default_choice, default_number
from xfer.lengths import MIN_STEPS, RunLength
from xfer.measure.class_accuracy import class_accuracies
from xfer.methods.descriptions import strategy_descriptions
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.recipe import CHOICE_TABLES, INTEGER_FIELDS, LIMITS, Recipe, closed_form_values, recipe_from_dict
from xfer.records import Epoch, Evaluation, Record, as_dict
from xfer.run import Run
from xfer.storage.atomic import atomic_write
from xfer.training import networks
from xfer.training.epochs import DivergedError
from xfer.training.export import save_classifier

TRAIN_DEFAULTS = {kind: default_choice(kind) for kind in CHOICE_TABLES}
"""Default of every choice: what every search begins with."""

DEFAULT_TEXTS = {
    "learning_rate": f"{default_number('learning_rate'):g}, for {TRAIN_DEFAULTS['optimizer']}",
    "clip_norm": "what the strategy implies",
    "images_per_class": "all",
}
"""How `--help` writes a default that is not a plain number."""


def default_text(name: str) -> str:
    """Return the default of a number as `--help` writes it."""
    default = default_number(name)
    return DEFAULT_TEXTS.get(name, "none" if default is None else f"{default:g}")


NUMERIC_FLAGS: dict[str, tuple[float | None, str]] = {
    name: (
        None if name == "learning_rate" else default_number(name),
        f"{NUMBERS[name].help} (default: {default_text(name)})",
    )
    for name in (
        *("learning_rate", "weight_decay", "batch_size", "clip_norm", "clip_value"),
        *("body_rate", "drop_path", "images_per_class"),
    )
}
"""The flags for numbers: default and help. The rate's default is filled in once the optimizer is known."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    shared.add_image_arguments(parser)
    shared.add_network_arguments(parser)
    tables = parser.add_argument_group("choices", "NAME or NAME:PARAMETER=VALUE,...; python -m xfer catalog lists them")
    for kind, table in CHOICE_TABLES.items():
        parameters = sorted({name for entry in table.values() for name in default_parameters(entry)})
        suffix = f"; parameters {', '.join(parameters)}" if parameters and len(parameters) < 5 else ""
        tables.add_argument(
            f"--{kind.replace('_', '-')}",
            default=TRAIN_DEFAULTS[kind],
            metavar="NAME",
            help=f"default: {TRAIN_DEFAULTS[kind]}{suffix}",
        )
    numbers = parser.add_argument_group("numbers")
    for name, (default, text) in NUMERIC_FLAGS.items():
        number = int if name in INTEGER_FIELDS else float
        numbers.add_argument(f"--{name.replace('_', '-')}", type=number, default=default, metavar="N", help=text)
    numbers.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"epochs (default: {DEFAULT_EPOCHS}, or as many as {MIN_STEPS} steps take)",
    )
    numbers.add_argument(
        "--eval-size", type=int, metavar="N", help=f"{NUMBERS['eval_size'].help} (default: as in training)"
    )
    numbers.add_argument("--steps", type=int, metavar="N", help="steps instead of epochs, rounded up to whole epochs")
    parser.add_argument(
        "--seed", type=int, default=0, help="determines new weights, the order of images and augmentations"
    )
    parser.add_argument("--draw", type=int, default=0, help="determines the validation set, if it is drawn at random")
    parser.add_argument("--out", type=Path, help="folder for checkpoints, record and model (default: runs/<recipe>)")
    parser.add_argument("--test", action="store_true", help="evaluate on the test set at the end; do this only once")


def run(args: argparse.Namespace) -> None:
    """Trains the recipe given on the command line; run again, it resumes after the last completed epoch.

    Writes recipe.json, checkpoints/, record.json and model/ to its folder, and test.json with `--test`.

    Raises:
        ValueError: If the input is invalid.
        DivergedError: If the training diverged; record.json holds the error.
    """
    choices = {kind: parse_choice(kind, getattr(args, kind)) for kind in CHOICE_TABLES}
    strategy: Strategy = choices["strategy"].build(STRATEGIES)
    rate = _learning_rate(args, choices["optimizer"])
    file = shared.resolve_weights(args) if strategy.pretrained else None
    for text in _ignored_flags(args, strategy):
        shared.print_note(text)
    length = RunLength(args.epochs, args.steps)
    source = shared.open_source(args)
    recipe = _recipe(args, choices, strategy, rate, len(source.classes), shared.weights_hash(file))
    networks.check_network(recipe)  # before reading images, which may take long
    pack = shared.prepare_pack(args, source, recipe.image_size)
    recipe = dataclasses.replace(recipe, data=pack.hash)
    if recipe.uses_gradient_steps:
        recipe = dataclasses.replace(recipe, epochs=_epochs(length, recipe, pack))
    out = args.out or args.storage / f"{recipe.strategy.name}-{recipe.id[:8]}"
    _claim(out, recipe)
    eval_pack = None
    if recipe.eval_size is not None:
        progress = shared.progress_printer(f"reading images of {recipe.eval_size} px")
        eval_pack = build_pack(source, recipe.eval_size, args.storage / "packs", progress)
    training = Run(recipe, pack, file, folder=out / "checkpoints", eval_pack=eval_pack)
    split = training.split
    print(
        f"{recipe.strategy} ({strategy_descriptions()[recipe.strategy.name]}) on {recipe.backbone}: "
        f"{len(pack.classes)} classes, {len(split.train)} training, {len(split.val)} validation and "
        f"{len(split.test)} test images of {recipe.image_size} px"
        + (f", evaluated at {recipe.eval_size} px" if recipe.eval_size else "")
    )
    _train(training, out)
    save_classifier(out / "model", training.model, recipe, pack.classes, pack.value_ranges)
    print(_format_evaluation("validation", training.evaluate("val"), pack.classes))
    if args.test:
        test = training.evaluate("test")
        _write_json(out / "test.json", test)
        print(_format_evaluation("test", test, pack.classes))
    print(f"to classify photos: python -m xfer predict --model {out / 'model'} IMAGE ...")


def _epochs(length: RunLength, recipe: Recipe, pack: Pack) -> int:
    """Return the number of epochs of a recipe, which depends on the size of the training set."""
    labels = pack.labels[split_pack(pack, recipe.split_seed, recipe.draw, recipe.images_per_class).train]
    sizes = tuple(np.bincount(labels, minlength=recipe.classes).tolist())
    return dataclasses.replace(length, class_sizes=sizes).epochs_for(recipe.batch_size)


def parse_choice(kind: str, text: str) -> Choice:
    """Parses a choice given as NAME or NAME:PARAMETER=VALUE,...

    >>> str(parse_choice("strategy", "train_last:blocks=2"))
    'train_last(blocks=2)'

    Raises:
        ValueError: If the entry or the parameter is unknown, or a value has the wrong type.
    """
    name, _, values = text.partition(":")
    choice, flag = choose(kind, CHOICE_TABLES[kind], name.strip()), f"--{kind.replace('_', '-')}"
    defaults, given = dict(choice.values), shared.parse_key_values(values, flag)
    for parameter in given:
        if parameter not in defaults:
            raise ValueError(unknown_name_message(f"parameter of {kind} {choice.name}", parameter, defaults))
    converted = {name: _convert(defaults[name], value, f"{flag} {text}: {name}") for name, value in given.items()}
    return Choice(choice.name, tuple((defaults | converted).items()))


def _convert(default: Value, value: Value, label: str) -> Value:
    """Converts a value to the type of the default: 1 and 1.0 are the same recipe, so they need the same hash."""
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        expected = "an integer" if type(default) is int else "a value"
        raise ValueError(f"{label} must be {expected} like {default}, got {value}")
    return value


def _learning_rate(args: argparse.Namespace, optimizer: Choice) -> float:
    if args.learning_rate is None and optimizer.name != "sgd":
        raise ValueError(
            f"--optimizer {args.optimizer} needs --learning-rate: good rates differ between optimizers by orders of "
            f"magnitude; python -m xfer catalog optimizer shows their ranges"
        )
    return OPTIMIZERS["sgd"].default_learning_rate if args.learning_rate is None else float(args.learning_rate)


def _ignored_flags(args: argparse.Namespace, strategy: Strategy) -> Iterator[str]:
    if args.weights and not strategy.pretrained:
        yield f"strategy {args.strategy} starts from random weights: --weights is ignored"
    if strategy.backbone and (args.backbone, args.backbone_args) != (shared.DEFAULT_BACKBONE, ""):
        yield f"strategy {args.strategy} uses {strategy.backbone}: --backbone and --backbone-args are ignored"


def _recipe(
    args: argparse.Namespace, choices: dict[str, Choice], strategy: Strategy, rate: float, classes: int, weights: str
) -> Recipe:
    """Builds the recipe except for its data, which are not read yet."""
    numbers: dict[str, Any] = {**{name: getattr(args, name) for name in NUMERIC_FLAGS}, "learning_rate": rate}
    if numbers["clip_norm"] is None:
        if strategy.clip_norm is not None and args.clip_value is not None:
            raise ValueError(
                f"--clip-value {args.clip_value:g}: strategy {args.strategy} already clips the gradient norm at "
                f"{strategy.clip_norm:g}; use --strategy naive to clip by value"
            )
        numbers["clip_norm"] = strategy.clip_norm
    if args.steps is not None and not strategy.steps:
        raise ValueError(
            f"strategy {args.strategy} fits a linear head in closed form and takes no gradient steps: leave out "
            f"--steps {args.steps}"
        )
    numbers["epochs"] = args.epochs or int(LIMITS["epochs"][1])  # the default follows when the images have been read
    defaults = {**TRAIN_DEFAULTS, **{name: default for name, (default, _) in NUMERIC_FLAGS.items()}, "views": None}
    defaults["epochs"] = None
    closed_form = {} if strategy.steps else closed_form_values()
    return recipe_from_dict(
        {
            **{kind: choice.as_dict() for kind, choice in choices.items()},
            **numbers,
            **{name: value for name, value in closed_form.items() if getattr(args, name, None) == defaults[name]},
            "data": "",
            "classes": classes,
            "image_size": shared.resolve_image_size(args, strategy.backbone),
            "eval_size": args.eval_size,
            "backbone": strategy.backbone or args.backbone,
            "backbone_args": {}
            if strategy.backbone
            else shared.parse_key_values(args.backbone_args, "--backbone-args"),
            "weights": weights,
            "split_seed": args.split_seed,
            "seed": args.seed,
            "draw": args.draw,
        }
    )


def _claim(out: Path, recipe: Recipe) -> None:
    """Writes recipe.json, or checks that the folder was started with the same recipe."""
    path, current = out / "recipe.json", recipe.as_dict()
    if path.is_file():
        try:
            existing = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): remove {out}, or use another --out") from error
        changed = [name for name in sorted(current.keys() | existing.keys()) if current.get(name) != existing.get(name)]
        if changed:
            raise ValueError(f"{out} holds a run of another recipe ({', '.join(changed)} differ): use another --out")
    atomic_write(path, json.dumps(current, indent=1).encode())


def _train(training: Run, out: Path) -> None:
    """Trains to the end and writes record.json."""
    epochs, done = training.recipe.epochs, len(training.epochs)
    if done:
        print(f"resuming after epoch {done}" if done < epochs else "training is already complete")
    try:
        for epoch in training:
            print(_format_epoch(epoch, epochs), flush=True)
    except KeyboardInterrupt:
        print(
            f"stopped after {len(training.epochs)} of {epochs} epochs: run the same command to resume", file=sys.stderr
        )
        raise
    except DivergedError as error:
        _write_json(out / "record.json", training.record(error=str(error)))
        raise
    record = training.record()
    if record.kept is not None:
        print(_format_kept(record))
    # Running the command on a finished run only evaluates it again; that does not count as resuming.
    resumed_at = tuple(epoch for epoch in record.resumed_at if epoch < epochs)
    _write_json(out / "record.json", dataclasses.replace(record, resumed_at=resumed_at))


def _write_json(path: Path, value: Evaluation | Record) -> None:
    atomic_write(path, json.dumps(as_dict(value), indent=1).encode())


def _format_epoch(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.epoch:3} of {epochs}   training loss {epoch.train_loss:7.4f}   validation accuracy "
        f"{epoch.val_accuracy:6.1%}   {epoch.images_per_second:7.1f} images/s   {epoch.seconds:6.1f} s"
    )


def _format_kept(record: Record) -> str:
    last = record.epochs[-1]
    accuracies: dict[str, float | None] = {
        "last": last.raw_val_accuracy,
        "averaged": last.averaged_val_accuracy,
        "start": record.start_accuracy,
    }
    compared = [f"{name} {accuracy:.1%}" for name, accuracy in accuracies.items() if accuracy is not None]
    return f"weights kept: {record.kept}, the best in validation accuracy ({', '.join(compared)})"


def _format_evaluation(part: str, evaluation: Evaluation, classes: Sequence[str]) -> str:
    text = f"{part} accuracy {evaluation.accuracy:.1%} ({sum(evaluation.correct)} of {len(evaluation.correct)})"
    if evaluation.balanced_accuracy is not None:
        text += f", balanced {evaluation.balanced_accuracy:.1%}"
    for worst in class_accuracies([evaluation])[:1]:
        text += f", worst class {classes[worst.label]} {worst.accuracy:.1%} of {worst.images}"
    if evaluation.calibration_error is not None:
        text += f", calibration error {evaluation.calibration_error:.1%}"
    return text
