"""Prepare: reads the data, finds the weights and checks the space, so that a sweep fails before its first trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sweeps.engine.plan import Plan
from sweeps.engine.planning import panel, screening
from sweeps.engine.planning.plan_file import panel_sweep_name
from sweeps.engine.planning.prepared import Backbone, Prepared, common_images_per_class, run_length
from sweeps.engine.samplers.ask_tell import ENUMERATING_SAMPLERS, SAMPLERS, available_trials
from sweeps.engine.schedulers import SCHEDULERS, top_k_count
from sweeps.engine.search_space.defaults import AXES
from sweeps.engine.search_space.distributions import domain_values
from sweeps.engine.search_space.overrides import space_for
from sweeps.engine.search_space.space import Space
from xfer import hashing
from xfer.advice import zero_shot
from xfer.choices import choose, unknown_name_message
from xfer.data.class_balance import Imbalance, find_imbalance
from xfer.data.copies import report_copies
from xfer.data.groups import missing_after_drawing, report_groups
from xfer.data.inspection import summary_line, unreadable
from xfer.data.layouts import fetch_data, read_source
from xfer.data.pack import Pack, Progress, build_pack, check_same_images, load_pack
from xfer.data.source import select_classes
from xfer.data.split import Split, split_pack
from xfer.hyperparameters import Categorical
from xfer.methods.strategies import STRATEGIES, Strategy
from xfer.models import backbones
from xfer.models.panel import AUTO, PANEL_IMAGE_SIZE
from xfer.models.timm_names import alias_note, resolve_name
from xfer.recipe import CHOICE_TABLES, LIMITS, closed_form_values, recipe_from_dict
from xfer.training import networks


def prepare(
    plan: Plan,
    storage: Path,
    progress: Progress = lambda done, total: None,
    panel_request: panel.PanelRequest = panel.DEFAULT_REQUEST,
) -> Prepared:
    """Read the data into a pack, find and load the weights, and check the space.

    Args:
        plan: the experiment.
        storage: the folder in which packs are cached.
        progress: called while images are read.
        panel_request: determines, with the plan, which networks `--backbone auto` stands for.

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
    uses_panel = AUTO in plan.backbones
    for name in plan.backbones:
        if name != AUTO:
            backbones.check_name(name)
    # Typos first: reading data may take long.
    requested = space_for(plan.backbones, run_length(plan), plan.strategies, _edits(plan))
    sizes = _image_sizes(plan, requested)
    image_size = sizes[0]
    if uses_panel:
        _check_panel_use(plan)
    if plan.zero_shot:
        zero_shot.check_network(plan.zero_shot)
    plan = dataclasses.replace(plan, data=str(fetch_data(plan.data, progress)))
    source = select_classes(
        read_source(plan.data, plan.source, plan.parts, plan.follow_links, plan.group), plan.classes
    )
    chosen: panel.PanelChoice | None = None
    built: Pack | None = None
    name = ""
    if uses_panel:
        built = build_pack(source, image_size, storage / "packs", progress)
        name = panel_sweep_name(plan, built.hash, image_size, source.name)
        chosen = _choose_panel(plan, len(source.classes), sizes, panel_request, name)
        plan = dataclasses.replace(plan, backbones=tuple(backbone.name for backbone in chosen.backbones), weights={})
    check = partial(_check_network, plan, len(source.classes), sizes)
    space = _checked_space(plan, len(source.classes), sizes)
    for kind in ("embedding_loss", "head", "activation", "colour"):
        for backbone, entry in product(plan.backbones, domain_values(space.axes[kind])):
            check(backbone, **{kind: {"name": entry}})
    for backbone, rate in product(plan.backbones, domain_values(space.axes["drop_path"])):
        if rate and "drop_path" in plan.edits:
            check(backbone, drop_path=rate)
    pretrained = any(STRATEGIES[name]().pretrained for name in space.strategies())
    checked = (
        chosen.backbones
        if chosen
        else tuple(
            _load_backbone(plan, name, len(source.classes), sizes, _find_weights(plan, name) if pretrained else None)
            for name in plan.backbones
        )
    )
    built = built or build_pack(source, image_size, storage / "packs", progress)
    pack = load_pack(built.folder, verify=True)
    other_packs = tuple(
        load_pack(build_pack(source, size, storage / "packs", progress).folder, verify=True) for size in sizes[1:]
    )
    for other in other_packs:
        check_same_images(pack, other)
    space = _checked_space(plan, len(pack.classes), sizes, pack)  # with the length of runs on these images
    split = split_pack(pack, plan.seed, images_per_class=common_images_per_class(space))
    # One more than requested, to see whether the grid ends before.
    combinations = 0 if plan.arms else available_trials(space, plan.sampler, plan.trials + 1)
    plan = dataclasses.replace(plan, trials=len(plan.arms) or min(plan.trials, combinations))
    balance = summary_line(source, unreadable(source, pack.skipped))
    notes = (
        balance,
        *alias_notes,
        *(panel.panel_notes(chosen.description) if chosen else ()),
        *_data_notes(source.notes, pack),
        *missing_after_drawing(pack, split),
        *_imbalance_notes(plan, pack, split),
        *_enumeration_notes(plan, combinations),
    )
    described = chosen.description if chosen else {}
    prepared = Prepared(plan, space, pack, split, image_size, checked, notes, source.name, described, name, other_packs)
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
    for name in names:
        if name in space.strategies():
            continue
        try:
            wider_plan = dataclasses.replace(plan, strategies=(*space.strategies(), name))
            sizes = tuple(pack.image_size for pack in prepared.packs)
            wider = _checked_space(wider_plan, len(prepared.pack.classes), sizes, prepared.pack)
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


def _image_sizes(plan: Plan, space: Space) -> tuple[int, ...]:
    """Return the image sizes that compete, the one to begin with first, or the only one."""
    if space.image_sizes:
        return tuple(size for size in space.image_sizes if isinstance(size, int))
    default = PANEL_IMAGE_SIZE if AUTO in plan.backbones else backbones.default_image_size(plan.backbones[0])
    return (plan.image_size or default,)


def _checked_space(plan: Plan, classes: int, image_sizes: Sequence[int], pack: Pack | None = None) -> Space:
    """Return the search space of a plan without what its backbones cannot do.

    Args:
        plan: the plan.
        classes: number of classes.
        image_sizes: those that compete, in pixels. Every backbone must take all of them.
        pack: the images, which determine the length of runs; None if they have not been read yet.
    """
    check = partial(_check_network, plan, classes, image_sizes)
    return space_for(
        plan.backbones,
        run_length(plan, pack),
        plan.strategies,
        _edits(plan),
        lambda backbone, strategy, values: check(backbone, strategy={"name": strategy, **values}),
    )


def _edits(plan: Plan) -> Mapping[str, str]:
    """Return the edits of a plan. Stochastic depth that the arguments of the network set is not searched as well."""
    if "drop_path_rate" in plan.backbone_args and "drop_path" not in plan.edits:
        return {**plan.edits, "drop_path": "0.0"}
    return plan.edits


def _check_panel_use(plan: Plan) -> None:
    """Raise a ValueError if a plan has no use for a panel of pretrained networks, or names weights that are missing."""
    panel.given_weights(plan)
    if plan.arms:
        raise ValueError(
            "--backbone auto: this experiment compares fixed recipes, so name the network: --backbone NAME"
        )
    strategies = space_for(plan.backbones, run_length(plan), plan.strategies, _edits(plan)).strategies()
    if not any(STRATEGIES[name]().pretrained for name in strategies):
        raise ValueError(
            f"--backbone auto compares pretrained weights, and {', '.join(strategies)} uses none: name the network, "
            f"--backbone NAME"
        )


def _choose_panel(
    plan: Plan, classes: int, image_sizes: Sequence[int], request: panel.PanelRequest, name: str
) -> panel.PanelChoice:
    """Return the networks of the stored sweep that is resumed, or choose those of a new one."""
    check = partial(_check_network, plan, classes, image_sizes)

    def load(name: str, file: Path) -> Backbone:
        backbone = _load_backbone(plan, name, classes, image_sizes, file)
        check(name, strategy={"name": screening.INITIAL_HEAD})  # networks are compared by heads
        return backbone

    checks = panel.NetworkChecks(check, load)
    stored = request.stored_plan(name)
    if stored and stored.get("panel"):
        return panel.restore_panel(plan, stored, checks)
    return panel.choose_panel(plan, request, checks)


def _find_weights(plan: Plan, name: str) -> Path:
    path = plan.weights.get(name)
    return panel.weights_file(path, name) if path else backbones.fetch_weights(name)


def _load_backbone(plan: Plan, name: str, classes: int, image_sizes: Sequence[int], file: Path | None) -> Backbone:
    """Build a backbone with its weights, and run it once on an image of zeros, in every size."""
    for size in image_sizes:
        model = backbones.build(name, classes, size, file, plan.backbone_args)  # fails if the weights do not fit
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, size, size))
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{name} cannot take images of {size} px: {error}") from error
    return Backbone(name, plan.backbone_args, file, hashing.sha256_file(file) if file else "")


def _check_network(plan: Plan, classes: int, image_sizes: Sequence[int], backbone: str, **choices: Any) -> None:
    """Raise a ValueError if a backbone does not support the given choices in every image size.

    All other choices are at their defaults.
    """
    drop_path = choices.pop("drop_path", 0.0)
    defaults = {kind: {"name": domain_values(AXES[kind])[0]} for kind in CHOICE_TABLES}
    named: dict[str, Mapping[str, Any]] = {**defaults, "strategy": {"name": "naive"}, **choices}
    strategy: Strategy = choose("strategy", STRATEGIES, **named["strategy"]).build(STRATEGIES)
    recipe = recipe_from_dict(
        {
            **named,
            "data": "",
            "classes": classes,
            "image_size": image_sizes[0],
            "backbone": strategy.backbone or backbone,
            "backbone_args": {} if strategy.backbone else plan.backbone_args,
            "weights": "the backbone's" if strategy.pretrained else "",
            "learning_rate": 1.0,
            "weight_decay": 0.0,
            "batch_size": 2,
            "epochs": int(LIMITS["epochs"][1]),  # the architecture does not depend on it
            "clip_norm": strategy.clip_norm,
            "drop_path": drop_path,
            **({} if strategy.steps else closed_form_values()),
        }
    )
    for size in image_sizes:
        networks.check_network(dataclasses.replace(recipe, image_size=size))


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
