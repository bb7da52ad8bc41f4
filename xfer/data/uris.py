"""Addresses: how a person says where images are."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from xfer.choices import unknown_name_message

DataUri = str | Path
"""A folder, a table's file, hf://owner/name or torchvision://NAME?root=DIR."""

URI_FORMATS = """Images are given as one of
    DIR                             a folder per class, Stanford Cars or QuickDraw as they were published
    FILE.csv, FILE.tsv              a table with the columns path and label, and part if you have parts
    s3://bucket/DIR, gs://...       either of them in an object store
    hf://owner/name                 a data set of the Hugging Face hub
    torchvision://NAME?root=DIR     a data set that torchvision knows, as in torchvision://CIFAR10?root=data"""


def resolve_folder(address: DataUri) -> Path:
    """The folder at an address, resolved.

    Raises:
        ValueError: there is none.
    """
    root = Path(address).expanduser()
    if not root.exists():
        raise ValueError(f"there is no folder {root}")
    if not root.is_dir():
        raise ValueError(f"{root} is a file; the folder that holds the images is wanted.\n{URI_FORMATS}")
    return root.resolve()


def parse_uri(address: DataUri, scheme: str) -> tuple[str, dict[str, str]]:
    """The name in an address of this scheme, and what is said after it. A % begins a byte in hexadecimal.

    >>> parse_uri("torchvision://CIFAR10?root=~/my data&download=yes", "torchvision")
    ('CIFAR10', {'root': '~/my data', 'download': 'yes'})

    Raises:
        ValueError: another scheme, or one thing is said twice.
    """
    said, colon, rest = str(address).partition(":")
    if said != scheme or not colon:
        raise ValueError(f"{address} should begin with {scheme}://.\n{URI_FORMATS}")
    name, _, query = rest.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    values = {key: unquote(value) for key, _, value in pairs}
    if len(values) < len(pairs):
        raise ValueError(f"{address} says one thing twice")
    return unquote(name).strip("/"), values  # a Path has made one slash of two


def reject_unknown_keys(values: dict[str, str], known: tuple[str, ...], name: str) -> None:
    """Nothing that is said in an address is ignored.

    Raises:
        ValueError: something that `known` has not.
    """
    for key in values:
        if key not in known:
            raise ValueError(unknown_name_message(f"setting of {name}", key, known))
