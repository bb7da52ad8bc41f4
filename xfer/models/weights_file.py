"""Read pretrained weights from the forms in which training scripts save them, without running code from the file."""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

WRAPPER_KEYS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "model_state"),
    *("net", "network", "weights", "params", "teacher", "student", "backbone", "encoder", "module"),
)
"""Keys under which training scripts save a state dict, in order of preference. timm prefers averaged weights too."""
WRAPPER_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.", "network.", "net.", "encoder.")
"""Prefixes of all tensor names that a wrapper module adds."""
MAX_NESTING = 4
INTEGER_BUFFERS = ("num_batches_tracked", "index", "mask", "ids", "coords")
"""Endings of the names of tensors that hold integers in a floating-point network."""
_ARRAY: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
_SCALAR: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
SAFE_TYPES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *(argparse.Namespace, PosixPath, set, np.ndarray, np.dtype),
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *((_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""Types beyond torch's own that a checkpoint may hold next to the weights, such as command lines and scores. Making one
of them runs no code from the file."""


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the state dict in a weights file, unwrapped from the checkpoint around it.

    The format is recognised by content: safetensors, or anything that `torch.load` reads with `weights_only`.

    Raises:
        ValueError: there is no such file, it is in another format, or it holds no state dict or several.
    """
    if not file.is_file():
        raise ValueError(f"there are no weights at {file}")
    try:
        if _is_safetensors(file):
            content: Any = safetensors.torch.load_file(file)
        else:
            # A stream, because torch chooses another loader by the suffix of a path.
            with torch.serialization.safe_globals(SAFE_TYPES), file.open("rb") as stream:
                content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a broken file raises many types of errors
        raise ValueError(
            f"{file.name} is neither a safetensors file nor a plain state dict that can be loaded without running "
            f"code from it: {_content_kind(file) or _cause(error)}"
        ) from error
    tensors = _unwrap(file, content)
    while tensors and (prefix := _common_prefix(tensors)):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def strip_prefix(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors below the prefix under which a file holds most tensors of a network.

    A file of a larger module holds a network as `model.conv1.weight`, next to other modules.

    Args:
        tensors: content of the file.
        names: names of the network's tensors.

    Returns:
        The tensors below the best prefix, which is '' unless another one fits more than half of the network and more
        tensors than ''.
    """
    prefixes: dict[str, int] = {}
    for name in tensors:
        words = name.split(".")
        for depth in range(min(len(words), MAX_NESTING)):
            prefix = "".join(f"{word}." for word in words[:depth])
            prefixes[prefix] = prefixes.get(prefix, 0) + (name.removeprefix(prefix) in names)
    best = max(prefixes, key=lambda prefix: prefixes[prefix], default="")
    if prefixes.get(best, 0) <= max(len(names) / 2, prefixes.get("", 0)):
        return dict(tensors)
    return {name.removeprefix(best): tensor for name, tensor in tensors.items() if name.startswith(best)}


def check_values(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that weights are floating-point numbers that a training could have produced.

    Raises:
        ValueError: integers or 8-bit numbers (quantized weights), values that are not finite, or constant tensors
            throughout.
    """
    weights = {name: tensor for name, tensor in tensors.items() if tensor.ndim and not name.endswith(INTEGER_BUFFERS)}
    integers = [name for name, tensor in weights.items() if _is_quantized(tensor)]
    if integers:
        dtype = str(weights[integers[0]].dtype).removeprefix("torch.")
        raise ValueError(
            f"{file.name} holds {dtype} values in {len(integers)} of {len(weights)} tensors, such as {integers[0]}. "
            f"Quantized weights cannot be fine-tuned: give the weights in floating point"
        )
    broken = [name for name, tensor in weights.items() if not tensor.sum(dtype=torch.float64).isfinite()]
    if broken:
        raise ValueError(
            f"{file.name} holds values that are not finite (NaN or infinity) in {len(broken)} of {len(weights)} "
            f"tensors, such as {broken[0]}: the training that wrote it has diverged"
        )
    matrices = [tensor for tensor in weights.values() if tensor.ndim > 1 and tensor.numel() > 1]
    constant = [tensor for tensor in matrices if _is_constant(tensor)]
    if matrices and 2 * len(constant) > len(matrices):
        value = float(constant[0].flatten()[0])
        raise ValueError(
            f"{file.name} holds no trained weights: {len(constant)} of {len(matrices)} weight tensors are constant "
            f"(the first is {value:g} throughout)"
        )


def _common_prefix(names: Collection[str]) -> str:
    """Return the wrapper's prefix that all names have, '' if there is none."""
    return next((prefix for prefix in WRAPPER_PREFIXES if all(name.startswith(prefix) for name in names)), "")


def _is_quantized(tensor: Tensor) -> bool:
    """Return whether a tensor holds integers, or floating-point numbers of 8 bits."""
    return tensor.is_quantized or not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2


def _is_constant(tensor: Tensor) -> bool:
    values = tensor.flatten()
    return bool((values[:64] == values[0]).all() and (values == values[0]).all())


def _content_kind(file: Path) -> str:
    """Return what a file is that holds no weights in a known format; empty if unclear."""
    with file.open("rb") as stream:
        start = stream.read(200)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file with git lfs pull"
    if start.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        return "it is a web page"
    if start.startswith(b"\x89HDF"):
        return "it is an HDF5 file, as Keras writes them"
    if start[8:9] == b"{":
        return "it is a safetensors file that is cut off; download it again"
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            return "it is a TorchScript archive; save model.state_dict() instead"
        return "" if "data.pkl" in names else "it is a zip archive of something else"
    return "it is cut off; download or copy it again" if start.startswith(b"PK\3\4") else ""


def _cause(error: Exception) -> str:
    """Return why torch does not load a file."""
    if match := re.search(r"GLOBAL (\S+) (?:was not|whose module)|but got <class '([^']+)'>", str(error)):
        return f"it holds {match[1] or match[2]}, which needs code. Save model.state_dict() alone"
    return type(error).__name__


def _is_safetensors(file: Path) -> bool:
    """Return whether a file begins with a safetensors header: its length in 8 bytes, then a JSON object."""
    with file.open("rb") as stream:
        start = stream.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= file.stat().st_size - 8


def _unwrap(file: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict inside nested dictionaries."""
    for _ in range(MAX_NESTING):
        if not isinstance(content, Mapping):
            break
        inner = {key: value for key, value in content.items() if isinstance(key, str) and _holds_tensors(value)}
        wrapper = next((key for key in WRAPPER_KEYS if key in inner), None)
        if wrapper is None and not any(_is_array(value) for value in content.values()):
            if len(inner) > 1:
                raise ValueError(
                    f"{file.name} holds several state dicts ({', '.join(inner)}): save the one to use in its own file"
                )
            wrapper = next(iter(inner), None)
        if wrapper is None:
            break
        content = inner[wrapper]
    tensors = (
        {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors and (not isinstance(content, Mapping) or content):
        kind = (
            f"a dictionary of {', '.join(map(str, [*content][:5]))}" if isinstance(content, Mapping) else type(content)
        )
        raise ValueError(f"{file.name} holds no state dict, but {kind}: save model.state_dict() in it")
    return tensors


def _is_array(value: Any) -> bool:
    """Return whether a value is a tensor of several numbers; single ones are often scores and counters."""
    return isinstance(value, Tensor) and value.numel() > 1


def _holds_tensors(value: Any, depth: int = MAX_NESTING) -> bool:
    """Return whether a value is a state dict, or a dictionary with names that leads to one."""
    if not isinstance(value, Mapping) or depth == 0:
        return False
    return any(
        isinstance(key, str) and (_is_array(inner) or _holds_tensors(inner, depth - 1)) for key, inner in value.items()
    )
