"""Train: one recipe, without a sweep around it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xfer.choices import Choice, Value, choose, default_parameters, unknown_name_message
from xfer.commands import shared
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.recipe import CHOICE_TABLES, DEFAULT_CHOICES, INTEGER_FIELDS, Recipe, closed_form_values, recipe_from_dict
from xfer.records import Epoch, Evaluation, Record, as_dict
from xfer.run import Run
from xfer.training import networks
from xfer.training.epochs import DivergedError
from xfer.training.export import save_classifier

TRAIN_DEFAULTS = {
    **DEFAULT_CHOICES,
    "strategy": "clip",
    "optimizer": "sgd",
    "schedule": "onecycle",
    "augmentation": "flip",
    "mixing": "none",
    "loss": "cross_entropy",
}
"""What is meant where nothing is said: what every search begins with."""
NUMERIC_FLAGS: dict[str, tuple[float | None, str]] = {
    "learning_rate": (None, "the peak rate (default: 0.01, for sgd)"),
    "weight_decay": (1e-4, "default: 0.0001"),
    "batch_size": (16, "default: 16"),
    "epochs": (8, "default: 8"),
    "clip_norm": (None, "the gradient's largest norm; what the strategy stands for unless given"),
    "clip_value": (None, "the gradient's largest absolute value (default: none)"),
    "body_rate": (1.0, "the rate below the head as a share of the head's (default: 1)"),
    "images_per_class": (None, "train on so many images of each class (default: all)"),
}
SGD_RATE = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    shared.add_image_arguments(parser)
    shared.add_network_arguments(parser)
    tables = parser.add_argument_group("choices", "NAME or NAME:PARAMETER=VALUE,...; python -m xfer catalog lists them")
    for kind, table in CHOICE_TABLES.items():
        own = sorted({name for entry in table.values() for name in default_parameters(entry)})
        also = f"; parameters {', '.join(own)}" if own and len(own) < 5 else ""
        tables.add_argument(
            f"--{kind.replace('_', '-')}",
            default=TRAIN_DEFAULTS[kind],
            metavar="NAME",
            help=f"default: {TRAIN_DEFAULTS[kind]}{also}",
        )
    numbers = parser.add_argument_group("numbers")
    for name, (default, text) in NUMERIC_FLAGS.items():
        number = int if name in INTEGER_FIELDS else float
        numbers.add_argument(f"--{name.replace('_', '-')}", type=number, default=default, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="decides head, order of images and augmentation")
    parser.add_argument("--draw", type=int, default=0, help="decides the validation part, where that is drawn")
    parser.add_argument("--out", type=Path, help="folder for checkpoints, record and model (default: runs/<recipe>)")
    parser.add_argument("--test", action="store_true", help="open the test part at the end; do it once")


def run(args: argparse.Namespace) -> None:
    """Train the recipe that was asked for; given again, go on from the last epoch.

    Leaves recipe.json, checkpoints/, record.json and model/ in its folder; test.json where the test part was opened.

    Raises:
        ValueError: wrong input.
        DivergedError: the run came to nothing; record.json says so.
    """
    choices = {kind: parse_choice(kind, getattr(args, kind)) for kind in CHOICE_TABLES}
    strategy: Strategy = choices["strategy"].build(STRATEGIES)
    rate = _rate(args, choices["optimizer"])
    file = shared.resolve_weights(args) if strategy.pretrained else None
    for text in _unused(args, strategy):
        shared.print_note(text)
    source = shared.open_source(args)
    recipe = _recipe(args, choices, strategy, rate, len(source.classes), shared.weights_hash(file))
    networks.check_network(recipe)  # slips first: reading images may take long
    pack = shared.prepare_pack(args, source, recipe.image_size)
    recipe = dataclasses.replace(recipe, data=pack.hash)
    out = args.out or args.storage / f"{recipe.strategy.name}-{recipe.id[:8]}"
    _claim(out, recipe)
    trained = Run(recipe, pack, file, folder=out / "checkpoints")
    split = trained.split
    print(
        f"{recipe.strategy} on {recipe.backbone}: {len(pack.classes)} classes, {len(split.train)} training, "
        f"{len(split.val)} validation and {len(split.test)} test images of {recipe.image_size} px"
    )
    _train(trained, out)
    save_classifier(out / "model", trained.model, recipe, pack.classes)
    print(_judged("validation", trained.evaluate("val")))
    if args.test:
        test = trained.evaluate("test")
        _put(out / "test.json", test)
        print(_judged("test", test))
    print(f"{out / 'model'} can be asked: python -m xfer predict --model {out / 'model'} IMAGE ...")


def parse_choice(kind: str, text: str) -> Choice:
    """A choice as a person writes it.

    >>> str(parse_choice("strategy", "train_last:blocks=2"))
    'train_last(blocks=2)'

    Raises:
        ValueError: no such entry, it has no such parameter, or that takes other values.
    """
    name, _, values = text.partition(":")
    usual, flag = choose(kind, CHOICE_TABLES[kind], name.strip()), f"--{kind.replace('_', '-')}"
    known, given = dict(usual.values), shared.parse_key_values(values, flag)
    for parameter in given:
        if parameter not in known:
            raise ValueError(unknown_name_message(f"parameter of {kind} {usual.name}", parameter, known))
    fitting = {name: _like(known[name], value, f"{flag} {text}: {name}={value}") for name, value in given.items()}
    return Choice(usual.name, tuple((known | fitting).items()))


def _like(usual: Value, value: Value, said: str) -> Value:
    """A value of the same type as the usual one, for 1 and 1.0 are one recipe, and must hash as one."""
    if isinstance(usual, float) and type(value) is int:
        return float(value)
    if type(value) is not type(usual):
        raise ValueError(f"{said} cannot be; a value like {usual} is wanted{' (whole)' * (type(usual) is int)}")
    return value


def _rate(args: argparse.Namespace, optimizer: Choice) -> float:
    if args.learning_rate is None and optimizer.name != "sgd":
        raise ValueError(
            f"--optimizer {args.optimizer}: say --learning-rate too, for good rates differ between optimizers by "
            f"orders of magnitude; python -m xfer catalog optimizer shows their ranges"
        )
    return SGD_RATE if args.learning_rate is None else float(args.learning_rate)


def _unused(args: argparse.Namespace, strategy: Strategy) -> Iterator[str]:
    if args.weights and not strategy.pretrained:
        yield f"strategy {args.strategy} starts from random weights: --weights is not used"
    if strategy.backbone and (args.backbone, args.backbone_args) != (shared.DEFAULT_BACKBONE, ""):
        yield f"strategy {args.strategy} brings {strategy.backbone}: --backbone and --backbone-args are not used"


def _recipe(
    args: argparse.Namespace, choices: dict[str, Choice], strategy: Strategy, rate: float, classes: int, weights: str
) -> Recipe:
    """The recipe but for its data, which are not read yet."""
    numbers: dict[str, Any] = {**{name: getattr(args, name) for name in NUMERIC_FLAGS}, "learning_rate": rate}
    if numbers["clip_norm"] is None:
        if strategy.clip_norm is not None and args.clip_value is not None:
            raise ValueError(
                f"--clip-value {args.clip_value:g}: strategy {args.strategy} clips the gradient's norm already, at "
                f"{strategy.clip_norm:g}; take --strategy naive to clip by value"
            )
        numbers["clip_norm"] = strategy.clip_norm
    usual = {**TRAIN_DEFAULTS, **{name: default for name, (default, _) in NUMERIC_FLAGS.items()}, "views": None}
    held = {} if strategy.steps else closed_form_values()
    return recipe_from_dict(
        {
            **{kind: choice.as_dict() for kind, choice in choices.items()},
            **numbers,
            **{name: value for name, value in held.items() if getattr(args, name, None) == usual[name]},
            "data": "",
            "classes": classes,
            "image_size": shared.resolve_image_size(args, strategy.backbone),
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
    """Write down what is trained in a folder, or see that it is what was begun there."""
    path, plain = out / "recipe.json", recipe.as_dict()
    if path.is_file():
        begun = json.loads(path.read_text())
        changed = [name for name in sorted(plain.keys() | begun.keys()) if plain.get(name) != begun.get(name)]
        if changed:
            raise ValueError(f"{out} holds a run of another recipe ({', '.join(changed)} differ): take another --out")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain, indent=1))


def _train(trained: Run, out: Path) -> None:
    """Train to the end and write down what came of it."""
    epochs, done = trained.recipe.epochs, len(trained.epochs)
    if done:
        print(f"going on after epoch {done}" if done < epochs else "nothing is left to train")
    try:
        for epoch in trained:
            print(_line(epoch, epochs), flush=True)
    except KeyboardInterrupt:
        print(f"after {len(trained.epochs)} of {epochs} epochs: the same command goes on from there", file=sys.stderr)
        raise
    except DivergedError as error:
        _put(out / "record.json", trained.record(error=str(error)))
        raise
    record = trained.record()
    resumed_at = tuple(after for after in record.resumed_at if after < epochs)  # a finished run is only looked at
    _put(out / "record.json", dataclasses.replace(record, resumed_at=resumed_at))


def _put(path: Path, value: Evaluation | Record) -> None:
    path.write_text(json.dumps(as_dict(value), indent=1))


def _line(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.epoch:3} of {epochs}   training loss {epoch.train_loss:7.4f}   validation accuracy "
        f"{epoch.val_accuracy:6.1%}   {epoch.images_per_second:7.1f} images/s   {epoch.seconds:6.1f} s"
    )


def _judged(part: str, found: Evaluation) -> str:
    said = f"{part} accuracy {found.accuracy:.1%} ({sum(found.correct)} of {len(found.correct)})"
    if found.balanced_accuracy is not None:
        said += f", balanced {found.balanced_accuracy:.1%}"
    if found.calibration_error is not None:
        said += f", calibration error {found.calibration_error:.1%}"
    return said
