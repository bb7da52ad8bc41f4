"""Names of timm networks: deprecated aliases, prefixes, and repositories of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import timm
from timm.models import PretrainedCfg, get_deprecated_models, load_model_config_from_hf

HUB_PREFIX = "hf-hub:"
"""Prefix of a hub repository with a config.json in timm's format."""
HUB_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?")
"""Owner, name and, if given, revision of a hub repository."""


@dataclass(frozen=True)
class Architecture:
    """What timm needs to build a network."""

    name: str
    """timm's name, with or without a tag."""
    config: PretrainedCfg
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the network that a hub repository stores."""


@lru_cache(maxsize=1024)
def resolve_name(name: str) -> str:
    """Return the name under which timm knows a network today; a name that is unknown is returned unchanged.

    Deprecated names become current ones, in any case. The prefixes `timm/`, `hf_hub:`, `hf-hub:` and the hub's address
    are removed from names of timm; other hub repositories keep `hf-hub:`.

    >>> resolve_name("xception"), resolve_name("hf_hub:timm/resnet50.a1_in1k")
    ('legacy_xception', 'resnet50.a1_in1k')
    >>> resolve_name("hf_hub:someone/birds")
    'hf-hub:someone/birds'
    """
    name = name.strip()
    repository = re.sub(r"^(hf[-_]hub:|https?://huggingface\.co/)", "", name, flags=re.IGNORECASE)
    short = re.sub(r"^timm/", "", repository, flags=re.IGNORECASE).lower()  # all names of timm are in lower case
    current = _current_name(short)
    base = current.partition(".")[0]
    if repository != name and not (timm.is_model(base) and current in (base, *timm.list_pretrained(f"{base}.*"))):
        return HUB_PREFIX + repository  # also for tags and revisions that are newer than this timm
    return current if timm.is_model(base) else name


def alias_note(name: str) -> str:
    """Return a sentence that says which network is used for a name; empty if it is that of the name.

    >>> alias_note("xception"), alias_note("resnet50")
    ("backbone xception is timm's legacy_xception; that name is used.", '')
    """
    resolved = resolve_name(name)
    return "" if resolved == name.strip() else f"backbone {name.strip()} is timm's {resolved}; that name is used."


def is_hub_repository(name: str) -> bool:
    """Return whether a resolved name is that of a hub repository."""
    return name.startswith(HUB_PREFIX) and HUB_REPOSITORY.fullmatch(name.removeprefix(HUB_PREFIX)) is not None


def split_repository(name: str) -> tuple[str, str | None]:
    """Return repository and revision of a hub name; the revision is None if the name has none.

    >>> split_repository("hf-hub:someone/birds@v2")
    ('someone/birds', 'v2')
    """
    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    return repository, revision or None


def architecture(name: str) -> Architecture:
    """Return architecture and pretraining of a network.

    Args:
        name: a name of timm or a hub repository, resolved or not.

    Raises:
        ValueError: the hub repository cannot be read or holds no network of timm.
    """
    name = resolve_name(name)
    if is_hub_repository(name):
        return _hub_architecture(name)
    return Architecture(name, timm.get_pretrained_cfg(name) or PretrainedCfg())


@lru_cache(maxsize=64)
def _hub_architecture(name: str) -> Architecture:
    try:
        config, model_name, args = load_model_config_from_hf(name.removeprefix(HUB_PREFIX))
    except Exception as error:  # the hub's client raises many types of errors
        raise ValueError(
            f"backbone {name}: config.json of this repository could not be read from the hub: {type(error).__name__}. "
            f"Without a network, give a name of timm"
        ) from error
    if not timm.is_model(model_name):
        raise ValueError(f"backbone {name}: its architecture {model_name!r} is not one of timm")
    # Weights are always read from a file, so no source of the repository may take precedence over it.
    kept = {key: value for key, value in config.items() if key not in ("source", "hf_hub_id", "file", "url")}
    return Architecture(model_name, PretrainedCfg(**kept), dict(args or {}))


def _current_name(name: str) -> str:
    """Return timm's current name for a deprecated one, with or without a tag."""
    base, dot, tag = name.partition(".")
    target: str | None = get_deprecated_models().get(base)
    if not target:
        return name
    if dot:
        return f"{target.partition('.')[0]}.{tag}"
    if "." not in target:
        return target
    # Some targets were renamed again: vit_base_patch16_224.sam is .sam_in1k today.
    tags: list[str] = timm.list_pretrained(f"{target.partition('.')[0]}.*")
    longer: list[str] = [tag for tag in tags if tag.startswith(f"{target}_")]
    return longer[0] if target not in tags and len(longer) == 1 else target
