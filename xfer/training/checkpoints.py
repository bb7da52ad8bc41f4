"""Checkpoints: a run's state in one file, atomic, checksummed, and never unpickled.

A file is a safetensors container named `epoch-0003-<checksum>.safetensors`: tensors as tensors, everything else as JSON
in its header. It gets its name only when it is whole, and the name says what its content must hash to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from xfer.storage.atomic import atomic_write

log = logging.getLogger(__name__)

FILE_PATTERN = re.compile(r"epoch-(\d{4,})-([0-9a-f]{16})\.safetensors")


def save(folder: Path, epoch: int, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write a state and forget all but the newest `keep`.

    Args:
        folder: where the run's checkpoints are.
        epoch: how many epochs have been trained.
        state: nested dicts and lists of tensors, numbers, strings, booleans and None. Numbers come back bit for bit;
            keys come back as strings, tuples as lists.
        keep: how many checkpoints stay.
    """
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, tensors, "")
    content = safetensors.torch.save(tensors, metadata={"plain": json.dumps(plain)})
    path = folder / f"epoch-{epoch:04d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    atomic_write(path, content)
    for old in _found(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load(folder: Path) -> dict[str, Any] | None:
    """The newest state whose content is what its name says; None where there is none.

    A damaged file is removed and named in the log; the one before it is used.
    """
    for path in _found(folder):
        content = path.read_bytes()
        name = FILE_PATTERN.fullmatch(path.name)
        if name and hashlib.sha256(content).hexdigest().startswith(name[2]):
            tensors = safetensors.torch.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            restored: dict[str, Any] = _with_tensors(json.loads(header["__metadata__"]["plain"]), tensors)
            return restored
        log.warning("checkpoint %s is damaged: going back to the one before it", path)
        path.unlink(missing_ok=True)
    return None


def _found(folder: Path) -> list[Path]:
    """Newest first."""
    named = [(int(match[1]), path) for path in folder.glob("epoch-*") if (match := FILE_PATTERN.fullmatch(path.name))]
    return [path for _, path in sorted(named, reverse=True)]


def _without_tensors(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous().clone()  # two names of one tensor are two tensors on disk
        return {"__tensor__": place}
    if isinstance(value, Mapping):
        return {str(key): _without_tensors(each, tensors, f"{place}/{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(each, tensors, f"{place}/{index}") for index, each in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {key: _with_tensors(each, tensors) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_tensors(each, tensors) for each in value]
    return value
