"""Parse the URIs that name data sets."""

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


def resolve_folder(uri: DataUri) -> Path:
    """Return the absolute path of a folder.

    Raises:
        ValueError: it does not exist or is not a folder.
    """
    root = Path(uri).expanduser()
    if not root.exists():
        raise ValueError(f"there is no folder {root}")
    if not root.is_dir():
        raise ValueError(f"{root} is a file; give the folder that holds the images.\n{URI_FORMATS}")
    return root.resolve()


def parse_uri(uri: DataUri, scheme: str) -> tuple[str, dict[str, str]]:
    """Return the name in a URI of this scheme, and its parameters. Both are percent-decoded.

    >>> parse_uri("torchvision://CIFAR10?root=~/my data&download=yes", "torchvision")
    ('CIFAR10', {'root': '~/my data', 'download': 'yes'})

    Raises:
        ValueError: the scheme differs, or a parameter is given twice.
    """
    prefix, colon, rest = str(uri).partition(":")
    if prefix != scheme or not colon:
        raise ValueError(f"{uri} should begin with {scheme}://.\n{URI_FORMATS}")
    name, _, query = rest.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    parameters = {key: unquote(value) for key, _, value in pairs}
    if len(parameters) < len(pairs):
        raise ValueError(f"{uri} gives a parameter twice. Give it once")
    return unquote(name).strip("/"), parameters  # a Path has turned two slashes into one


def reject_unknown_keys(parameters: dict[str, str], known: tuple[str, ...], name: str) -> None:
    """Check that every parameter of a URI is known, so that none is silently ignored.

    Raises:
        ValueError: a parameter is not in `known`.
    """
    for key in parameters:
        if key not in known:
            raise ValueError(unknown_name_message(f"setting of {name}", key, known))
