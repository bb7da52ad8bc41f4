"""Data sets of labelled images that torchvision.datasets reads from disk."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xfer.choices import closest_names_message
from xfer.data.file_gate import usable_files
from xfer.data.image_formats import UnreadableImageError
from xfer.data.images import ImageFile, LazyImage, to_square
from xfer.data.pixel_rules import to_rgb
from xfer.data.source import Example, Source, filter_labels, validate_source
from xfer.data.uris import DataUri, parse_uri, reject_unknown_keys
from xfer.data.value_ranges import NO_RANGES, ValueRanges
from xfer.records import Part

SPLIT_ALIASES: dict[Part, tuple[str, ...]] = {
    "train": ("train", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}
"""Names of the splits of torchvision's data sets by part. The first that a data set knows is used."""
RESERVED_PARAMETERS = {"root", "train", "transform", "target_transform", "transforms", "loader"}
"""Arguments of torchvision's data sets that this module sets, so that a URI cannot."""
BOOLEAN_WORDS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True, slots=True, eq=False)
class TorchvisionImage:
    """An image that torchvision returns as pixels."""

    dataset: Any
    """The data set of torchvision."""
    index: int
    name: str

    def digest(self) -> str:
        """Return the hash of its pixels."""
        try:
            image = self.dataset[self.index][0]
            image = image if image.mode in ("I", "F") or image.mode.startswith("I;16") else to_rgb(image)
        except Exception:  # torchvision and Pillow raise many types; `read` reports the error
            return hashlib.sha256(b"unreadable").hexdigest()
        return hashlib.sha256(f"{image.width} x {image.height} ".encode() + image.tobytes()).hexdigest()

    def encoded(self) -> Image.Image | None:
        """Return the image; None if torchvision cannot read it, which `read` reports."""
        try:
            image = self.dataset[self.index][0]
        except Exception:
            return None
        return image if isinstance(image, Image.Image) else None

    def read(self, size: int, ranges: ValueRanges = NO_RANGES) -> NDArray[np.uint8]:
        """Return the pixels; see `to_square`."""
        try:
            return to_square(self.dataset[self.index][0], size, ranges)
        except UnreadableImageError:
            raise
        except Exception as error:
            raise UnreadableImageError(f"{type(error).__name__}: {error}"[:200]) from error


def torchvision(uri: DataUri) -> Source:
    """Read a data set of torchvision: torchvision://NAME?root=DIR, as in torchvision://CIFAR10?root=data.

    NAME is a class of torchvision.datasets whose images have one label each; DIR holds its files in torchvision's
    layout. Nothing is downloaded without `&download=yes`. Other arguments of the class are parameters too, as in
    torchvision://EMNIST?root=data&split=letters. The data set's parts are kept; with `split`, or without parts, images
    have no part. Classes are in the data set's order, and classes without images are left out.

    If torchvision opens one file per image, the file is read here, within the limits of `xfer.data.images`. If it
    returns pixels (MNIST, CIFAR), those are used, and torchvision's own checks of the files are trusted.

    Raises:
        ValueError: no such data set, missing files, images without exactly one label, or an unknown argument.
    """
    from torchvision import datasets

    name, parameters = parse_uri(uri, "torchvision")
    known = {word.lower(): word for word in datasets.__all__ if inspect.isclass(getattr(datasets, word))}
    if name.lower() not in known:
        message = closest_names_message("data set of torchvision", name, known.values())
        raise ValueError(
            f"{message} Known are the classes of torchvision.datasets, as in torchvision://CIFAR10?root=DIR"
        )
    name = known[name.lower()]
    factory = getattr(datasets, name)
    signature = _signature(factory)
    reject_unknown_keys(parameters, ("root", *(key for key in signature if key not in RESERVED_PARAMETERS)), name)
    args: dict[str, Any] = {key: _parse_value(key, text, signature.get(key)) for key, text in parameters.items()}
    if "root" in signature:
        if "root" not in parameters:
            raise ValueError(f"where are the files of {name}? Give torchvision://{name}?root=DIR")
        args["root"] = str(Path(parameters["root"]).expanduser())
    if "loader" in signature:
        args["loader"] = Path  # returns the path of an image instead of its pixels
    parts = list(_load_parts(name, factory, signature, args))
    images = [
        (image, label, None if len(parts) == 1 else part)
        for part, dataset in parts
        for image, label in _iter_labelled(name, dataset)
    ]
    classes = _class_names(parts[0][1], 1 + max((label for _, label, _ in images), default=-1))
    unit = "files" if images and isinstance(images[0][0], ImageFile) else "images"
    source = Source(name, classes, tuple(Example(*image) for image in images), unit=unit)
    if "root" in args:
        source = usable_files(source, Path(args["root"]))
    source = filter_labels(source, {example.label for example in source.examples})
    return validate_source(source, name, f"in {parameters.get('root')}")


def _load_parts(
    name: str, factory: Any, signature: Mapping[str, inspect.Parameter], args: dict[str, Any]
) -> Iterator[tuple[Part, Any]]:
    if "train" in signature:
        yield "train", _load(name, factory, {**args, "train": True})
        yield "test", _load(name, factory, {**args, "train": False})
    elif "split" not in signature or "split" in args:
        yield "train", _load(name, factory, args)
    else:
        for part, aliases in SPLIT_ALIASES.items():
            loaded = [dataset for alias in aliases if (dataset := _load(name, factory, {**args, "split": alias}, part))]
            if loaded:
                yield part, loaded[0]
            elif part == "train":
                raise ValueError(f"{name} has no split called train. Name one: &split=NAME")


def _load(name: str, factory: Any, args: dict[str, Any], part: Part | None = None) -> Any:
    """Return the data set, or None if it does not have the split of a part."""
    try:
        return factory(**args)
    except Exception as error:  # missing files are a RuntimeError or FileNotFoundError, missing libraries any type
        # From torchvision.datasets.utils.verify_str_arg, which every data set calls first.
        if part and isinstance(error, ValueError) and "for argument split" in str(error):
            return None
        location = f" in {args['root']}" if "root" in args else ""
        download = (
            "" if args.get("download") else f" Download it by hand, or with torchvision://{name}?root=DIR&download=yes"
        )
        only_train = " If only the training part is there, add &split=train." if part in ("val", "test") else ""
        raise ValueError(
            f"torchvision cannot read {name}{location}: {type(error).__name__}: {str(error)[:500]}."
            f"{only_train}{download}"
        ) from error


def _iter_labelled(name: str, dataset: Any) -> Iterator[tuple[LazyImage, int]]:
    for index in range(len(dataset)):
        try:
            image, label = dataset[index]
            label = int(label)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is not a data set of images with one label each: {error}") from error
        if isinstance(image, Path):
            yield ImageFile(image), label
        elif isinstance(image, Image.Image):
            file = getattr(image, "filename", "")  # set if the image was opened but not decoded
            image.close()
            yield ImageFile(Path(file)) if file else TorchvisionImage(dataset, index, f"{name} {index}"), label
        else:
            raise ValueError(f"{name} is not a data set of images: it returns {type(image).__name__}")


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    """Return the data set's class names, or the labels as text if it has none."""
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    if len(names) < count:
        names = range(count)
    return tuple(", ".join(name) if isinstance(name, (tuple, list)) else str(name) for name in names)


def _signature(factory: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a data set, including those of base classes that it forwards arguments to."""
    parameters: dict[str, inspect.Parameter] = {}
    for cls in inspect.getmro(factory):
        own = inspect.signature(vars(cls)["__init__"]).parameters if "__init__" in vars(cls) else {}
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        parameters = {
            name: parameter for name, parameter in own.items() if parameter.kind in kinds and name != "self"
        } | parameters
        if own and not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own.values()):
            break
    return parameters


def _parse_value(name: str, text: str, parameter: inspect.Parameter | None) -> str | int | bool:
    """Convert a parameter of a URI to the type of the argument's default."""
    default = parameter.default if parameter else ""
    if isinstance(default, bool) or name == "download":
        if text.lower() not in BOOLEAN_WORDS:
            raise ValueError(f"{name} must be yes or no, not {text!r}")
        return BOOLEAN_WORDS[text.lower()]
    if isinstance(default, int):
        try:
            return int(text)
        except ValueError as error:
            raise ValueError(f"{name} must be an integer, not {text!r}") from error
    return text
