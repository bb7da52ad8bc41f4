"""Find pretrained weights: in the local cache of the Hugging Face hub, in a folder, or on the hub itself."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xfer.models.timm_names import architecture, is_hub_repository, resolve_name, split_repository

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Endings of weights files, in order of preference."""


class HubUnreachableError(ValueError):
    """The hub does not answer, so asking it for another network is pointless."""


def hub_location(name: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Return the repository, revision and possible file names of a network's weights, the preferred file name first.

    Args:
        name: a name of timm or a hub repository.

    Raises:
        ValueError: timm knows no weights for the network, or they are not on the hub.
    """
    name = resolve_name(name)
    if is_hub_repository(name):
        repository, revision = split_repository(name)
        return repository, revision, ("model.safetensors", "pytorch_model.bin")
    config = architecture(name).config
    if not config.has_weights:
        raise ValueError(f"timm knows no pretrained weights for {name}: give a file with --weights FILE")
    if not config.hf_hub_id:
        raise ValueError(
            f"the weights of {name} are not on the hub, but at {config.url}: download them, then give --weights FILE"
        )
    return config.hf_hub_id, None, ("model.safetensors", config.hf_hub_filename or "pytorch_model.bin")


def hub_cache() -> str:
    """Return the folder in which the hub's client caches files, with ~ for the user's home.

    HF_HOME and HF_HUB_CACHE change it.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    return f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else str(folder)


def cached_weights(name: str) -> Path | None:
    """Return the weights of a network in the local cache of the hub, without using the network; None if not cached.

    Raises:
        ValueError: timm knows no weights for the network, or they are not on the hub.
    """
    from huggingface_hub import try_to_load_from_cache

    repository, revision, file_names = hub_location(name)
    for file_name in file_names:
        cached = try_to_load_from_cache(repository, file_name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    return None


def download_bytes(name: str) -> int | None:
    """Ask the hub for the size of a network's weights.

    Returns:
        The size in bytes; None if the hub does not say it.

    Raises:
        HubUnreachableError: the hub does not answer, or the environment forbids asking (HF_HUB_OFFLINE).
        ValueError: the hub has no such file, or does not hand it out.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

    repository, revision, file_names = hub_location(name)
    if constants.HF_HUB_OFFLINE:
        raise HubUnreachableError("HF_HUB_OFFLINE is set")
    for file_name in file_names:
        try:
            return get_hf_file_metadata(hf_hub_url(repository, file_name, revision=revision)).size
        except RemoteEntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status >= 500:
                raise HubUnreachableError(f"{constants.ENDPOINT} answers with status {status}") from error
            raise ValueError(
                f"the hub does not hand out its weights: {type(error).__name__} (status {status})"
            ) from error
        except Exception as error:  # connection errors of the client's HTTP library
            raise HubUnreachableError(f"{constants.ENDPOINT} cannot be reached: {type(error).__name__}") from error
    raise ValueError(f"its repository on the hub has no file {' or '.join(file_names)}")


def weights_in_folder(file_names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Find out to which networks of timm the files of a folder belong, by their names.

    Args:
        file_names: the content of a folder, such as `mobilenetv2_100.safetensors` and `resnet50.a1_in1k.pth`.

    Returns:
        File names by network, spelled as the file; and reasons by file name, for weights files that are not used.
        Of several files for one network, safetensors files come first.
    """
    found: dict[str, str] = {}
    ignored: dict[str, str] = {}
    names = sorted(file_names)
    for suffix in SUFFIXES:
        for file_name in (name for name in names if name.endswith(suffix) and name != suffix):
            network = file_name.removesuffix(suffix)
            same = next((found[other] for other in found if full_name(other) == full_name(network)), None)
            if not _is_known(network):
                ignored[file_name] = "the file is not named after a network of timm"
            elif same:
                ignored[file_name] = f"{same} is used for this network"
            else:
                found[network] = file_name
    return found, ignored


def full_name(name: str) -> str:
    """Return timm's name of a network with the tag of its default pretraining, if it is a name without one.

    >>> full_name("mobilenetv2_100"), full_name("resnet50.a1_in1k")
    ('mobilenetv2_100.ra_in1k', 'resnet50.a1_in1k')
    """
    name = resolve_name(name)
    if "." in name or is_hub_repository(name):
        return name
    tag = architecture(name).config.tag
    return f"{name}.{tag}" if tag else name


def _is_known(name: str) -> bool:
    import timm

    name = resolve_name(name)
    base, dot, _ = name.partition(".")
    return timm.is_model(base) and (not dot or name in timm.list_pretrained(f"{base}.*"))
