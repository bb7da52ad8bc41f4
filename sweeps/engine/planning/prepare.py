"""Prepare: reads the data, finds the weights and checks the space, so that a sweep fails before its first trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeps.engine.plan import Plan
from sweeps.engine.planning import screening
from sweeps.engine.planning.prepared import Backbone, Prepared, common_images_per_class
from sweeps.engine.samplers.ask_tell import ENUMERATING_SAMPLERS, SAMPLERS, available_trials
from sweeps.engine.schedulers import SCHEDULERS, top_k_count
from sweeps.engine.search_space.defaults import AXES
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.search_space.overrides import space_for
from xfer import hashing
from xfer.choices import choose, unknown_name_message
from xfer.data.class_balance import Imbalance, find_imbalance
from xfer.data.copies import report_copies
from xfer.data.groups import missing_after_drawing, report_groups
from xfer.data.inspection import summary_line, unreadable
from xfer.data.layouts import fetch_data, read_source
from xfer.data.pack import Pack, Progress, build_pack, load_pack
from xfer.data.source import select_classes
from xfer.data.split import Split, split_pack
from xfer.hyperparameters import Categorical
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.models import backbones
from xfer.models.timm_names import alias_note, resolve_name
from xfer.recipe import CHOICE_TABLES, closed_form_values, recipe_from_dict
from xfer.storage import local_cache, object_store
from xfer.training import networks


def prepare(plan: Plan, storage: Path, progress: Progress = lambda done, total: None) -> Prepared:
    """Read the data into a pack, find and load the weights, and check the space.

    Args:
        plan: the experiment.
        storage: the folder in which packs are cached.
        progress: called while images are read.

    Raises:
        ValueError: the plan cannot be run; the message says why and what to change.
    """
    for kind, name, known in (
        ("sampler", plan.sampler, SAMPLERS),
        ("scheduler", plan.scheduler, SCHEDULERS),
    ):
        if name not in known:
            raise ValueError(unknown_name_message(kind, name, known))
    if plan.scheduler == "one_epoch_top_k" and top_k_count(plan.trials) < min(plan.finalists, plan.trials):
        raise ValueError(
            f"--scheduler one_epoch_top_k lets the best {top_k_count(plan.trials)} of {plan.trials} trials continue, "
            f"but --finalists is {plan.finalists}: use at least --trials {8 * plan.finalists - 7}, or fewer finalists"
        )
    alias_notes = tuple(note for note in map(alias_note, plan.backbones) if note)
    plan = dataclasses.replace(
        plan,
        backbones=tuple(dict.fromkeys(map(resolve_name, plan.backbones))),
        weights={resolve_name(name): file for name, file in plan.weights.items()},
    )
    for name in plan.backbones:
        backbones.check_name(name)
    image_size = plan.image_size or backbones.default_image_size(plan.backbones[0])
    space_for(plan.backbones, plan.epochs, plan.strategies, plan.edits)  # typos first: reading data may take long
    plan = dataclasses.replace(plan, data=str(fetch_data(plan.data, progress)))
    source = select_classes(
        read_source(plan.data, plan.source, plan.parts, plan.follow_links, plan.group), plan.classes
    )
    check = partial(_check_network, plan, len(source.classes), image_size)
    space = space_for(
        plan.backbones,
        plan.epochs,
        plan.strategies,
        plan.edits,
        lambda backbone, strategy, values: check(backbone, strategy={"name": strategy, **values}),
    )
    for kind in ("embedding_loss", "head", "activation", "colour"):
        for backbone, entry in product(plan.backbones, domain_values(space.axes[kind])):
            check(backbone, **{kind: {"name": entry}})
    pretrained = any(STRATEGIES[name]().pretrained for name in space.strategies())
    checked = tuple(_load_backbone(plan, name, len(source.classes), image_size, pretrained) for name in plan.backbones)
    pack = load_pack(build_pack(source, image_size, storage / "packs", progress).folder, verify=True)
    split = split_pack(pack, plan.seed, images_per_class=common_images_per_class(space))
    # One more than requested, to see whether the grid ends before.
    combinations = 0 if plan.arms else available_trials(space, plan.sampler, plan.trials + 1)
    plan = dataclasses.replace(plan, trials=len(plan.arms) or min(plan.trials, combinations))
    balance = summary_line(source, unreadable(source, pack.skipped))
    notes = (
        balance,
        *alias_notes,
        *_data_notes(source.notes, pack),
        *missing_after_drawing(pack, split),
        *_imbalance_notes(plan, pack, split),
        *_enumeration_notes(plan, combinations),
    )
    prepared = Prepared(plan, space, pack, split, image_size, checked, notes, source.name)
    # Both raise a ValueError if anything does not fit together.
    for params in space.known_good(plan.arms):
        prepared.recipe(space.configured(params))
    screening.screening_trials(prepared)
    return prepared


def add_strategies(prepared: Prepared, names: Iterable[str]) -> Prepared:
    """Return a sweep in which further strategies compete, except for those that none of its backbones can do.

    Args:
        prepared: the sweep, whose strategies are those of the default space.
        names: the strategies to add; those that compete already are ignored.
    """
    plan, space = prepared.plan, prepared.space
    check = partial(_check_network, plan, len(prepared.pack.classes), prepared.image_size)
    for name in names:
        if name in space.strategies():
            continue
        try:
            wider = space_for(
                plan.backbones,
                plan.epochs,
                (*space.strategies(), name),
                plan.edits,
                lambda backbone, strategy, values: check(backbone, strategy={"name": strategy, **values}),
            )
            for params in wider.known_good():
                prepared.recipe(wider.configured(params))
            space = wider
        except ValueError:
            continue
    return dataclasses.replace(prepared, space=space)


def add_balances(prepared: Prepared, names: Sequence[str]) -> Prepared:
    """Return a sweep in which these entries of `balance` compete, the first one as the default.

    Strategies without gradient steps keep `balance` none.
    """
    axes = {**prepared.space.axes, "balance": Categorical(tuple(names))}
    return dataclasses.replace(prepared, space=dataclasses.replace(prepared.space, axes=axes))


def training_imbalance(prepared: Prepared) -> Imbalance | None:
    """Return the imbalance of a sweep's training part; None if its classes are of similar size."""
    return _imbalance(prepared.pack, prepared.split)


def _imbalance(pack: Pack, split: Split) -> Imbalance | None:
    counts = np.bincount(pack.labels[split.train], minlength=len(pack.classes))
    return find_imbalance(counts.tolist(), pack.classes)


def _imbalance_notes(plan: Plan, pack: Pack, split: Split) -> tuple[str, ...]:
    imbalance = _imbalance(pack, split)
    if imbalance is None:
        return ()
    remedy = (
        ""
        if "balanced_accuracy" in plan.objective
        else " Accuracy says little about rare classes: --objective balanced_accuracy ranks by the mean over classes."
    )
    return (f"Classes are imbalanced: {imbalance.line}.{remedy}",)


def _load_backbone(plan: Plan, name: str, classes: int, image_size: int, pretrained: bool) -> Backbone:
    """Find the weights of a backbone, and run it once on an image of zeros."""
    file = None
    if pretrained:
        path = plan.weights.get(name)
        file = _weights_file(path) if path else backbones.fetch_weights(name)
    model = backbones.build(name, classes, image_size, file, plan.backbone_args)  # fails if the weights do not fit
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name} cannot take images of {image_size} px: {error}") from error
    return Backbone(name, plan.backbone_args, file, hashing.sha256_file(file) if file else "")


def _weights_file(path: str) -> Path:
    """Return the local copy of a weights file, whose path may be a URI in an object store."""
    if "://" in path:
        with suppress(FileNotFoundError):
            return local_cache.fetch_file(object_store.as_path(path), refresh=True)
    elif (file := Path(path).expanduser().resolve()).is_file():
        return file
    raise ValueError(f"there is no weights file {path}")


def _check_network(plan: Plan, classes: int, image_size: int, backbone: str, **choices: Mapping[str, Any]) -> None:
    """Raise a ValueError if a backbone does not support the given choices; all others are at their defaults."""
    defaults = {kind: {"name": domain_values(AXES[kind])[0]} for kind in CHOICE_TABLES}
    named: dict[str, Mapping[str, Any]] = {**defaults, "strategy": {"name": "naive"}, **choices}
    strategy: Strategy = choose("strategy", STRATEGIES, **named["strategy"]).build(STRATEGIES)
    networks.check_network(
        recipe_from_dict(
            {
                **named,
                "data": "",
                "classes": classes,
                "image_size": image_size,
                "backbone": strategy.backbone or backbone,
                "backbone_args": {} if strategy.backbone else plan.backbone_args,
                "weights": "the backbone's" if strategy.pretrained else "",
                "learning_rate": 1.0,
                "weight_decay": 0.0,
                "batch_size": 2,
                "epochs": plan.epochs,
                "clip_norm": strategy.clip_norm,
                **({} if strategy.steps else closed_form_values()),
            }
        )
    )


def _enumeration_notes(plan: Plan, combinations: int) -> tuple[str, ...]:
    """Return a note on the number of configurations, if the sampler enumerates them."""
    if plan.sampler not in ENUMERATING_SAMPLERS or plan.arms:
        return ()
    if combinations > plan.trials:
        return (f"--sampler {plan.sampler}: there are more combinations than the {plan.trials} that --trials allows.",)
    return (
        f"--sampler {plan.sampler}: {combinations} combinations, the known good ones among them, are all there are.",
    )


def _data_notes(source_notes: tuple[str, ...], pack: Pack) -> tuple[str, ...]:
    """Return remarks on the data: those of the source, unreadable images, copies."""
    notes = list(source_notes)
    if pack.skipped:
        shown = "; ".join(pack.skipped[:5])
        more = f"; and {len(pack.skipped) - 5} more" if len(pack.skipped) > 5 else ""
        notes.append(f"{len(pack.skipped)} unreadable images were skipped: {shown}{more}.")
    labels = pack.labels.tolist()
    copies = report_copies(pack.copies, labels, pack.parts, pack.classes)
    if copies.warnings:
        notes += [copies.line, *copies.warnings]
    groups = report_groups(pack.groups, labels, pack.parts, pack.classes, pack.group_column)
    return (*notes, *([groups.line, *groups.warnings] if groups else []))
