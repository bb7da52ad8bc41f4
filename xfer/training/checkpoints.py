"""Checkpoints: a run's state in one file, written atomically, with a checksum and without pickle.

A file is a safetensors container named `epoch-0003-<checksum>.safetensors`, with tensors as tensors and everything else
as JSON in its header. It gets its name when it is complete, and the name holds the checksum of its content.
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
from safetensors import SafetensorError
from torch import Tensor

from xfer.storage.atomic import atomic_write

log = logging.getLogger(__name__)

FILE_PATTERN = re.compile(r"epoch-(\d{4,})-([0-9a-f]{16})\.safetensors")


def save(folder: Path, epoch: int, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write a checkpoint and delete all but the newest `keep`.

    Args:
        folder: of the run's checkpoints.
        epoch: number of completed epochs.
        state: nested dicts and lists of tensors, numbers, strings, booleans and None. Numbers are
            restored bit for bit, keys as strings, tuples as lists.
        keep: number of checkpoints to keep.

    Returns:
        The path of the new checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, tensors, "")
    content = safetensors.torch.save(tensors, metadata={"plain": json.dumps(plain)})
    path = folder / f"epoch-{epoch:04d}-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    atomic_write(path, content)
    for old in _newest_first(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load(folder: Path) -> dict[str, Any] | None:
    """Return the newest state whose checksum is correct; None if there is none.

    A damaged file is logged and deleted, and the one before it is used.
    """
    for path in _newest_first(folder):
        try:
            return _restore(path)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("checkpoint %s is damaged (%s): resuming from the one before it", path, error)
        path.unlink(missing_ok=True)
    return None


def _restore(path: Path) -> dict[str, Any]:
    """Return the state in a file.

    Raises:
        ValueError, KeyError, TypeError, SafetensorError: its content is not what was written.
    """
    content, name = path.read_bytes(), FILE_PATTERN.fullmatch(path.name)
    if name is None or not hashlib.sha256(content).hexdigest().startswith(name[2]):
        raise ValueError("its checksum differs")
    tensors = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    restored: dict[str, Any] = _with_tensors(json.loads(header["__metadata__"]["plain"]), tensors)
    return restored


def _newest_first(folder: Path) -> list[Path]:
    numbered = [
        (int(match[1]), path)
        for path in folder.glob("epoch-*")
        if (match := FILE_PATTERN.fullmatch(path.name)) and path.is_file()
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def _without_tensors(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()  # safetensors refuses shared memory
        return {"__tensor__": path}
    if isinstance(value, Mapping):
        return {str(key): _without_tensors(item, tensors, f"{path}/{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
