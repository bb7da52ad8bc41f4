"""The content of plan.json: the settings that determine the trials of a sweep, compared with those of a later start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sweeps.engine.plan import Plan
from sweeps.engine.planning import screening
from sweeps.engine.planning.prepared import Prepared
from sweeps.engine.search_space.explain import explain_defaults
from xfer import hashing
from xfer.data.layouts import detect_layout

IGNORED_PLAN_KEYS = (
    *("question", "data.folder", "data.images", "data.notes", "name", "provenance", "trials", "advice", "prices"),
    *("noise", "margin", "families", "defaults", "control"),
    *("warm_start.from", "warm_start.params", "warm_start.passed_over", "warm_start.why_none", "warm_start.measured"),
)
"""Keys that may differ between two starts of one sweep, because no trial depends on them."""


ADVISED_KEYS = ("space", "screening", "defaults")
"""Keys that change when the advice adds strategies; `advice.requested` has them as they were before."""


class PlanChangedError(ValueError):
    """A sweep cannot be resumed because it was started with another plan."""


def describe_plan(prepared: Prepared) -> dict[str, Any]:
    """Return the content of plan.json: everything that decides what is run, by content hash instead of name or path.

    What it holds besides (`IGNORED_PLAN_KEYS`) is for readers, such as the number of images of each class.
    """
    plan, screening_settings = prepared.plan, screening.describe(prepared)
    return {
        "experiment": plan.experiment,
        "question": plan.question,
        "data": {
            "source": plan.source or detect_layout(plan.data),
            "folder": prepared.source,
            "pack": prepared.pack.hash,
            **({"other_packs": [pack.hash for pack in prepared.other_packs]} if prepared.other_packs else {}),
            "classes": list(prepared.pack.classes),
            "images": np.bincount(prepared.pack.labels, minlength=len(prepared.pack.classes)).tolist(),
            "train": len(prepared.split.train),
            "val": len(prepared.split.val),
            "test": len(prepared.split.test),
            "split": prepared.split.description,
            "redraws": prepared.redraws,
            "notes": list(prepared.notes),
        },
        "backbones": [
            {
                "name": backbone.name,
                "args": dict(backbone.args),
                "weights": backbone.sha256,
                "file": backbone.file.name if backbone.file else None,
            }
            for backbone in prepared.backbones
        ],
        "image_size": prepared.image_size,
        "space": prepared.space.described(),
        "families": {name: network.family for name, network in prepared.space.traits.items()},
        "defaults": explain_defaults(prepared.space),
        "control": describe_control(prepared),
        "arms": [dict(arm) for arm in plan.arms],
        "trials": plan.trials,
        **({} if plan.epochs is None else {"epochs": plan.epochs}),
        **({} if plan.steps is None else {"steps": plan.steps}),
        **({} if plan.epochs is not None else {"lengths": prepared.space.described_lengths()}),
        # Absent by default, so that sweeps from before these options existed can be resumed.
        **({"warm_start": {"asked": True}} if plan.warm_start else {}),
        **({"screening": screening_settings} if screening_settings else {}),
        **({"panel": dict(prepared.panel)} if prepared.panel else {}),
        **({} if plan.noise else {"noise": False}),
        "objective": list(plan.objective),
        "sampler": plan.sampler,
        "scheduler": plan.scheduler,
        "finalists": plan.finalists,
        "seeds": plan.seeds,
        "seed": plan.seed,
        "margin": plan.margin,
    }


def describe_control(prepared: Prepared) -> dict[str, Any]:
    """Return the recipe that others are compared with: its `key`, as records have it, and its `settings`."""
    config = prepared.space.control(prepared.plan.arms)
    return {"key": prepared.recipe(config).key, "settings": dict(config)}


def default_name(prepared: Prepared) -> str:
    """Return the default name of a sweep: experiment, data folder and six hex digits of the plan's hash.

    Two different plans, or the same plan on two data folders, never share a name.
    """
    if prepared.panel_name:
        return prepared.panel_name
    flat = _flatten(describe_plan(prepared))
    identity = {name: value for name, value in flat.items() if not name.startswith(IGNORED_PLAN_KEYS)}
    return _sweep_name(prepared.plan.experiment, prepared.source, identity)


def panel_sweep_name(plan: Plan, pack_hash: str, image_size: int, source: str) -> str:
    """Return the default name of a sweep with `--backbone auto`, which must not depend on the networks that are found.

    It follows from the images and from the settings that differ from the defaults of `Plan`.

    Args:
        plan: the experiment as requested, with `auto` among its backbones.
        pack_hash: hash of the images.
        image_size: side of the images in pixels.
        source: name of the data set.
    """
    settings = {
        item.name: value
        for item in dataclasses.fields(plan)
        if item.name not in SETTINGS_OUTSIDE_PANEL_NAMES and (value := getattr(plan, item.name)) != _default(item)
    }
    return _sweep_name(plan.experiment, source, {**settings, "pack": pack_hash, "image_size": image_size})


SETTINGS_OUTSIDE_PANEL_NAMES = (
    *("experiment", "question", "trials", "noise", "margin", "advise", "zero_shot", "weights"),
    *("data", "source", "parts", "classes", "follow_links", "image_size"),
)
"""Settings of a plan that may change between two starts, or that the images and their size stand for."""


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def _sweep_name(experiment: str, source: str, identity: Mapping[str, Any]) -> str:
    folder = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in source)
    return f"{experiment}-{folder[:40] or 'data'}-{hashing.sha256_json(identity)[:6]}"


def plan_differences(stored: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """List the changes that keep a sweep from being resumed.

    Args:
        stored: the plan.json that the sweep was started with.
        plan: the plan.json of this start.

    Returns:
        One line per changed key, empty if the sweep can be resumed. A larger number of trials is not a change.
    """
    old, new = _flatten(requested_plan(stored)), _flatten(requested_plan(plan))
    changes = [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(IGNORED_PLAN_KEYS)
    ]
    if new["trials"] < old["trials"]:
        changes.append(f"trials: {old['trials']} -> {new['trials']} (more may be added, none taken away)")
    return changes


def requested_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of plan.json as the user asked for it, without the strategies that the advice has added."""
    requested: dict[str, Any] = plan.get("advice", {}).get("requested", {})
    return {name: value for name, value in plan.items() if not requested or name not in ADVISED_KEYS} | requested


def resumed_plan(stored: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan.json of a sweep that is resumed, possibly with more trials.

    Args:
        stored: the plan.json that the sweep was started with.
        plan: the plan.json of this start, with `name` and `provenance`.

    Returns:
        `plan` with everything that was decided once, at the first start.

    Raises:
        PlanChangedError: anything but the number of trials has changed; the message lists the changes.
    """
    changes = plan_differences(stored, plan)
    if changes:
        raise PlanChangedError(
            f"{plan['name']} was started with another plan, and its trials can only be compared under one:\n  "
            + "\n  ".join(changes)
            + "\nRepeat the original options, or start a separate sweep with --fresh or another --name"
        )
    advised = ADVISED_KEYS if "requested" in stored.get("advice", {}) else ()
    decided = {name: stored[name] for name in ("advice", "warm_start", "prices", *advised) if name in stored}
    provenance = {**plan["provenance"], "created": stored["provenance"]["created"]}
    return {**plan, "provenance": provenance, **decided}


def _flatten(plan: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plan.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        elif name == "backbones":
            flat[name] = [{key: backbone[key] for key in ("name", "args", "weights")} for backbone in value]
        else:
            flat[f"{prefix}{name}"] = value
    return flat
