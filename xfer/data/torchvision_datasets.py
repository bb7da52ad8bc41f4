"""Torchvision sets: the labelled images that torchvision.datasets can read from disk."""

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
from xfer.data.images import ImageFile, LazyImage, UnreadableImageError, to_rgb, to_square
from xfer.data.source import Example, Source, filter_labels, validate_source
from xfer.data.uris import DataUri, parse_uri, reject_unknown_keys
from xfer.records import Part

SPLIT_ALIASES: dict[Part, tuple[str, ...]] = {
    "train": ("train", "trainval"),
    "val": ("val", "valid"),
    "test": ("test",),
}
"""What torchvision's data sets call their parts; of several names the first that a data set knows."""
RESERVED_PARAMETERS = {"root", "train", "transform", "target_transform", "transforms", "loader"}
"""Arguments that are given here, not in an address."""
BOOLEAN_WORDS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True, slots=True, eq=False)
class TorchvisionImage:
    """An image that torchvision hands out as pixels."""

    images: Any
    """The data set."""
    index: int
    name: str

    def digest(self) -> str:
        """The hash of its pixels."""
        try:
            image = to_rgb(self.images[self.index][0])
        except Exception:  # whatever torchvision or Pillow raise; `read` says what it is
            return hashlib.sha256(b"unreadable").hexdigest()
        return hashlib.sha256(f"{image.width} x {image.height} ".encode() + image.tobytes()).hexdigest()

    def read(self, size: int) -> NDArray[np.uint8]:
        """See `squared`."""
        try:
            return to_square(self.images[self.index][0], size)
        except UnreadableImageError:
            raise
        except Exception as error:
            raise UnreadableImageError(f"{type(error).__name__}: {error}"[:200]) from error


def torchvision(address: DataUri) -> Source:
    """A data set that torchvision knows: torchvision://NAME?root=DIR, as in torchvision://CIFAR10?root=data.

    NAME is a class of torchvision.datasets whose images have one label each; DIR holds its files as torchvision wants
    them. Nothing is fetched unless the address says `&download=yes`. Its other arguments are said likewise, as in
    torchvision://EMNIST?root=data&split=letters. The parts are those it has; where it has none, or `split` says which,
    a test part is drawn. Classes are in its own order, and those that never occur are left out.

    Where torchvision opens one file for each image, that is read here, within the limits of `xfer.data.images`; where
    it hands out pixels (MNIST, CIFAR), these are taken, and its files are trusted as it trusts them.

    Raises:
        ValueError: no such data set, its files are not there, it has no single labels, an argument it does not take.
    """
    from torchvision import datasets

    name, said = parse_uri(address, "torchvision")
    known = {each.lower(): each for each in datasets.__all__ if inspect.isclass(getattr(datasets, each))}
    if name.lower() not in known:
        near = closest_names_message("data set of torchvision", name, known.values())
        raise ValueError(f"{near} Known are the classes of torchvision.datasets, as in torchvision://CIFAR10?root=DIR")
    name = known[name.lower()]
    make = getattr(datasets, name)
    parameters = _parameters(make)
    reject_unknown_keys(said, ("root", *(each for each in parameters if each not in RESERVED_PARAMETERS)), name)
    given: dict[str, Any] = {each: _value(each, value, parameters.get(each)) for each, value in said.items()}
    if "root" in parameters:
        if "root" not in said:
            raise ValueError(f"where are the files of {name}? torchvision://{name}?root=DIR")
        given["root"] = str(Path(said["root"]).expanduser())
    if "loader" in parameters:
        given["loader"] = Path  # so it hands out where an image is
    parts = list(_parts(name, make, parameters, given))
    pictures = [
        (*each, None if len(parts) == 1 else part) for part, images in parts for each in _labelled(name, images)
    ]
    classes = _classes(parts[0][1], 1 + max((label for _, label, _ in pictures), default=-1))
    source = Source(name, classes, tuple(Example(*each) for each in pictures))
    return validate_source(filter_labels(source, {label for _, label, _ in pictures}), name, f"in {said.get('root')}")


def _parts(
    name: str, make: Any, parameters: Mapping[str, inspect.Parameter], given: dict[str, Any]
) -> Iterator[tuple[Part, Any]]:
    if "train" in parameters:
        yield "train", _made(name, make, {**given, "train": True})
        yield "test", _made(name, make, {**given, "train": False})
    elif "split" not in parameters or "split" in given:
        yield "train", _made(name, make, given)
    else:
        for part, words in SPLIT_ALIASES.items():
            made = [images for word in words if (images := _made(name, make, {**given, "split": word}, part))]
            if made:
                yield part, made[0]
            elif part == "train":
                raise ValueError(f"{name} has no part called train. Say which is meant: &split=NAME")


def _made(name: str, make: Any, given: dict[str, Any], part: Part | None = None) -> Any:
    """The data set, or None where it has not got that part."""
    try:
        return make(**given)
    except Exception as error:  # missing files are a RuntimeError or FileNotFoundError, missing libraries anything
        # The words of torchvision.datasets.utils.verify_str_arg, which every data set asks first.
        if part and isinstance(error, ValueError) and "for argument split" in str(error):
            return None
        where = f" in {given['root']}" if "root" in given else ""
        fetch = (
            "" if given.get("download") else f" Fetch it by hand, or with torchvision://{name}?root=DIR&download=yes"
        )
        only = " Where only the training part is there, say &split=train." if part in ("val", "test") else ""
        raise ValueError(
            f"torchvision cannot read {name}{where}: {type(error).__name__}: {str(error)[:500]}.{only}{fetch}"
        ) from error


def _labelled(name: str, images: Any) -> Iterator[tuple[LazyImage, int]]:
    for index in range(len(images)):
        try:
            image, label = images[index]
            label = int(label)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is no data set of images with one label each: {error}") from error
        if isinstance(image, Path):
            yield ImageFile(image), label
        elif isinstance(image, Image.Image):
            file = getattr(image, "filename", "")  # of an image that was opened and not decoded yet
            image.close()
            yield ImageFile(Path(file)) if file else TorchvisionImage(images, index, f"{name} {index}"), label
        else:
            raise ValueError(f"{name} is no data set of images: it hands out {type(image).__name__}")


def _classes(images: Any, number: int) -> tuple[str, ...]:
    """Names from the data set where it has them, otherwise the labels."""
    names = getattr(images, "classes", None) or getattr(images, "categories", None) or ()
    if len(names) < number:
        names = range(number)
    return tuple(", ".join(each) if isinstance(each, (tuple, list)) else str(each) for each in names)


def _parameters(make: Any) -> dict[str, inspect.Parameter]:
    """What a data set takes; where it hands arguments on to the class it is made from, also what that takes."""
    found: dict[str, inspect.Parameter] = {}
    for each in inspect.getmro(make):
        own = inspect.signature(vars(each)["__init__"]).parameters if "__init__" in vars(each) else {}
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        found = {name: one for name, one in own.items() if one.kind in named and name != "self"} | found
        if own and not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in own.values()):
            break
    return found


def _value(name: str, said: str, parameter: inspect.Parameter | None) -> str | int | bool:
    """What an address says, of the kind of the argument's default."""
    default = parameter.default if parameter else ""
    if isinstance(default, bool) or name == "download":
        if said.lower() not in BOOLEAN_WORDS:
            raise ValueError(f"{name} is {said!r}; say yes or no")
        return BOOLEAN_WORDS[said.lower()]
    if isinstance(default, int):
        try:
            return int(said)
        except ValueError as error:
            raise ValueError(f"{name} is {said!r}; a whole number is wanted") from error
    return said
