"""Panel: the networks that `--backbone auto` stands for in one sweep, with the weights they start from.

Networks compete whose weights are at hand or can be downloaded; the others are left out with the reason. The choice is
stored in plan.json, and a later start takes it from there: it must depend neither on the hub nor on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.engine.plan import Plan
from sweeps.engine.planning.prepared import Backbone
from sweeps.reporting.formatting import format_percent, join_words, pluralize
from xfer.models import backbones
from xfer.models.hub_weights import (
    HubUnreachableError,
    cached_weights,
    download_bytes,
    full_name,
    hub_cache,
    weights_in_folder,
)
from xfer.models.panel import AUTO, MACHINES, PANEL, PanelSize, best_on_imagenet, panel_names
from xfer.storage import local_cache, object_store

HOW_TO_GET_WEIGHTS = (
    "Weights are taken from the hub and its local cache, from --weights NAME=FILE[,NAME=FILE], and from --weights DIR, "
    "a folder of files NAME.safetensors. On a machine with a network connection, model.safetensors of "
    "huggingface.co/timm/NAME can be downloaded for such a folder"
)
"""Advice for a panel of fewer than two networks."""


@dataclass(frozen=True)
class PanelRequest:
    """What determines, next to the plan, which networks `--backbone auto` stands for."""

    size: PanelSize = "small"
    stored_plan: Callable[[str], Mapping[str, Any] | None] = lambda name: None
    """Returns the plan.json of the sweep that would be resumed, from the default name of this one; None for a new
    sweep."""
    on_download: Callable[[str], None] = lambda line: None
    """Called with a line on what is about to be downloaded."""


DEFAULT_REQUEST = PanelRequest()
"""A new sweep on a machine without a GPU."""


@dataclass(frozen=True)
class NetworkChecks:
    """Functions of `prepare` that try a network out."""

    check: Callable[[str], None]
    """Raises a ValueError if a network of this name cannot be built for these images; needs no weights."""
    load: Callable[[str, Path], Backbone]
    """Loads a network with its weights; raises a ValueError if they do not fit."""


@dataclass(frozen=True)
class PanelChoice:
    """The networks that compete."""

    backbones: tuple[Backbone, ...]
    """The best on ImageNet first, networks without a published accuracy last."""
    description: Mapping[str, Any]
    """What plan.json stores as `panel`: `size`, `chosen` and `dropped` networks with reasons, `best_on_imagenet`."""


def choose_panel(plan: Plan, request: PanelRequest, checks: NetworkChecks) -> PanelChoice:
    """Find out which networks of the panel can compete, and load their weights, downloading those that are missing.

    Networks that the user named, with --backbone auto,NAME or by weights, join the panel.

    Args:
        plan: the experiment, with `auto` among its backbones.
        request: machine and progress.
        checks: try a network out.

    Raises:
        ValueError: no network has weights, or one that the user named by --backbone cannot compete.
    """
    given, dropped = given_weights(plan)
    named = {full_name(name): name for name in plan.backbones if name != AUTO}
    # By full name, so that a network is not listed twice. The user's spelling is kept.
    spelled = {name: name for name in panel_names(request.size)} | {name: given[name].name for name in given} | named
    files: dict[str, Path] = {}
    origins: dict[str, str] = {}
    missing = []
    for full, name in spelled.items():
        try:
            if full in given:
                files[name], origins[name] = given[full].path, "--weights"
            elif cached := cached_weights(name):
                files[name], origins[name] = cached, "the cache of the hub"
            else:
                missing.append(name)
        except ValueError as error:
            dropped[name] = str(error)
    files |= _download(missing, checks, request.on_download, dropped)
    loaded: dict[str, Backbone] = {}
    for name, file in files.items():
        try:
            loaded[name] = checks.load(name, file)
        except ValueError as error:
            dropped[name] = str(error)
    for name in named.values():
        if name in dropped:
            raise ValueError(f"--backbone {name} cannot compete: {dropped[name]}")
    if not loaded:
        raise ValueError(_nothing_found(request.size, dropped))
    chosen = sorted(loaded, key=lambda name: -(_top1(name) or 0.0))
    best = best_on_imagenet(map(full_name, chosen))
    return PanelChoice(
        tuple(loaded[name] for name in chosen),
        {
            "size": request.size,
            "chosen": [_describe(name, origins.get(name, "the hub")) for name in chosen],
            "dropped": [{"name": name, "reason": reason} for name, reason in dropped.items()],
            "best_on_imagenet": spelled[best] if best else None,
        },
    )


def restore_panel(plan: Plan, stored: Mapping[str, Any], checks: NetworkChecks) -> PanelChoice:
    """Load the networks that an earlier start has chosen.

    Args:
        plan: the experiment, with `auto` among its backbones.
        stored: the content of plan.json.
        checks: try a network out.

    Raises:
        ValueError: the weights of one of them are no longer at hand and cannot be downloaded.
    """
    given, loaded = given_weights(plan)[0], []
    for name in (str(backbone["name"]) for backbone in stored["backbones"]):
        try:
            file = given[full_name(name)].path if full_name(name) in given else cached_weights(name)
            if file is None:
                download_bytes(name)  # fails at once without a hub, where a download is tried for half a minute
                file = backbones.fetch_weights(name)
            loaded.append(checks.load(name, file))
        except ValueError as error:
            raise ValueError(
                f"this sweep was started with {name}, whose weights cannot be used any more: {error}. Put them back, "
                f"give them by --weights {name}=FILE, or start a separate sweep with --fresh"
            ) from error
    return PanelChoice(tuple(loaded), stored["panel"])


def panel_notes(panel: Mapping[str, Any]) -> tuple[str, ...]:
    """Return remarks on a choice for the reader of the report: why each network competes or does not.

    Args:
        panel: what plan.json stores as `panel`.
    """
    chosen = panel["chosen"]
    notes = [
        f"--backbone auto, panel for {MACHINES[panel['size']]}: {pluralize(len(chosen), 'network')} can compete. "
        f"{'; '.join(map(_chosen_text, chosen))}."
    ]
    dropped = {item["name"]: item["reason"] for item in panel["dropped"]}
    notes += [f"--backbone auto leaves out {line}." for line in _reasons(dropped)]
    if len(chosen) == 1:
        notes.append(f"--backbone auto has nothing to compare {chosen[0]['name']} with. {HOW_TO_GET_WEIGHTS}.")
    if restricted := [f"{item['name']} ({item['license']})" for item in chosen if item["license"]]:
        notes.append(f"A license restricts the use of the weights of {join_words(restricted)}.")
    return tuple(notes)


@dataclass(frozen=True)
class GivenWeights:
    """Weights that the user named by --weights."""

    name: str
    """Name of the network as the user wrote it."""
    path: Path
    """Local copy of the file."""


def given_weights(plan: Plan) -> tuple[dict[str, GivenWeights], dict[str, str]]:
    """Find the files that --weights names; with `auto`, those in its folder as well.

    Returns:
        The files by timm's full name of their network; and the files of the folder that are not used, with the reason.

    Raises:
        ValueError: a file or folder does not exist, or the folder holds no weights of a network of timm.
    """
    given: dict[str, GivenWeights] = {}
    ignored: dict[str, str] = {}
    if AUTO in plan.weights:
        folder = object_store.as_path(plan.weights[AUTO])
        found, ignored = weights_in_folder(object_store.list_names(folder))
        if object_store.is_file(folder):
            raise ValueError(
                f"--weights {plan.weights[AUTO]}: with --backbone auto, say which network the file belongs to: "
                f"NAME={plan.weights[AUTO]}"
            )
        if not object_store.exists(folder):
            raise ValueError(f"--weights {plan.weights[AUTO]}: there is no such folder")
        if not found:
            raise ValueError(
                f"--weights {plan.weights[AUTO]} holds no weights for --backbone auto: give a folder of files "
                f"NAME.safetensors (or .pt, .pth, .bin), where NAME is timm's name of the network, or NAME=FILE"
                + "".join(f"\n  {file_name}: {reason}" for file_name, reason in ignored.items())
            )
        for name, file_name in found.items():
            given[full_name(name)] = GivenWeights(name, _local_copy(folder / file_name))
    for name, path in plan.weights.items():
        if name != AUTO:
            given[full_name(name)] = GivenWeights(name, weights_file(path, name))
    return given, ignored


def weights_file(path: str, name: str) -> Path:
    """Return the local copy of a network's weights file.

    Args:
        path: the file, or a folder that holds it as NAME.safetensors; a path or a URI in an object store.
        name: the network's name.

    Raises:
        ValueError: there is no such file.
    """
    target = object_store.as_path(path)
    if object_store.is_file(target):
        return _local_copy(target)
    file_names = object_store.list_names(target)
    if not file_names:
        raise ValueError(f"there is no weights file {path}")
    by_network = {full_name(found): file_name for found, file_name in weights_in_folder(file_names)[0].items()}
    if full_name(name) not in by_network:
        there = join_words(sorted(by_network.values())) or "no weights of a network of timm"
        raise ValueError(f"--weights {path} has no file {name}.safetensors (or .pt, .pth, .bin), but {there}")
    return _local_copy(target / by_network[full_name(name)])


def _local_copy(file: Path) -> Path:
    return local_cache.fetch_file(file, refresh=True) if object_store.is_remote(file) else file.resolve()


def _download(
    names: Sequence[str], checks: NetworkChecks, on_download: Callable[[str], None], dropped: dict[str, str]
) -> dict[str, Path]:
    """Download weights; networks that fail are added to `dropped` with the reason."""
    sizes: dict[str, int | None] = {}
    unreachable = ""
    for name in names:
        if unreachable:
            dropped[name] = unreachable
            continue
        try:
            size = download_bytes(name)
            checks.check(name)
            sizes[name] = size
        except HubUnreachableError as error:
            unreachable = (
                f"not given with --weights, not in the cache of the hub ({hub_cache()}), and not to be downloaded "
                f"({error})"
            )
            dropped[name] = unreachable
        except ValueError as error:
            dropped[name] = str(error)
    if sizes:
        on_download(_download_text(sizes))
    files = {}
    for name in sizes:
        try:
            files[name] = backbones.fetch_weights(name)
        except ValueError as error:
            dropped[name] = str(error)
    return files


def _download_text(sizes: Mapping[str, int | None]) -> str:
    each = [f"{name} ({_megabytes(size)})" for name, size in sizes.items()]
    known = sum(size or 0 for size in sizes.values())
    return (
        f"downloading the weights of {pluralize(len(sizes), 'network')}, {_megabytes(known)} in total, to "
        f"{hub_cache()}: {', '.join(each)}"
    )


def _megabytes(size: int | None) -> str:
    return "size unknown" if size is None else f"{size / 1e6:,.1f} MB"


def _nothing_found(size: PanelSize, dropped: Mapping[str, str]) -> str:
    reasons = "".join(f"\n  {line}" for line in _reasons(dropped))
    return (
        f"--backbone auto: no network of the panel for {MACHINES[size]} can compete:{reasons}\n{HOW_TO_GET_WEIGHTS}. "
        f"--backbone NAME tries a single network"
    )


def _reasons(dropped: Mapping[str, str]) -> list[str]:
    """Return a line for each reason, with the names of all networks that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{join_words(names)}: {reason}" for reason, names in by_reason.items()]


def _top1(name: str) -> float | None:
    network = PANEL.get(full_name(name))
    return network.top1 if network else None


def _describe(name: str, weights: str) -> dict[str, Any]:
    network = PANEL.get(full_name(name))
    return {
        "name": name,
        "reason": network.reason if network else "given by the user",
        "top1": network.top1 if network else None,
        "license": network.license if network else "",
        "weights": weights,
    }


def _chosen_text(item: Mapping[str, Any]) -> str:
    accuracy = f"{format_percent(item['top1'])} on ImageNet, " if item["top1"] else ""
    return f"{item['name']} ({accuracy}{item['reason']})"
