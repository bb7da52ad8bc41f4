"""Weights at hand: in the cache of the hub and in folders; and what the hub says of those that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.fake_hub import Hub, serve
from xfer.models.backbones import fetch_weights
from xfer.models.hub_weights import (
    HubUnreachableError,
    cached_weights,
    download_bytes,
    full_name,
    hub_location,
    weights_in_folder,
)

NAME = "test_resnet.r160_in1k"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_of: Callable[[str], Path]) -> Iterator[Hub]:
    """A hub with the weights of one network, and an empty cache."""
    repository = tmp_path / "hub" / "timm" / NAME
    repository.mkdir(parents=True)
    (repository / "model.safetensors").write_bytes(weights_of("test_resnet").read_bytes())
    with serve(tmp_path / "hub") as hub:
        hub.use_in_process(monkeypatch, tmp_path / "cache")
        yield hub


def test_weights_are_found_in_the_cache_of_the_hub_without_asking_it(
    hub: Hub, weights_of: Callable[[str], Path]
) -> None:
    assert cached_weights("test_resnet") is None
    assert hub.requests == []
    fetched = fetch_weights("test_resnet")
    asked = len(hub.requests)
    assert cached_weights("test_resnet") == cached_weights(NAME) == fetched
    assert fetched.read_bytes() == weights_of("test_resnet").read_bytes()
    assert len(hub.requests) == asked


def test_the_hub_says_how_large_a_download_is(hub: Hub, weights_of: Callable[[str], Path]) -> None:
    assert download_bytes(NAME) == weights_of("test_resnet").stat().st_size
    assert {request.split()[0] for request in hub.requests} == {"HEAD"}


def test_weights_that_the_hub_does_not_have_are_no_reason_to_stop_asking(hub: Hub) -> None:
    with pytest.raises(
        ValueError, match=r"does not hand out its weights: RepositoryNotFoundError \(status 404\)"
    ) as raised:
        download_bytes("test_vit")
    assert not isinstance(raised.value, HubUnreachableError)


def test_a_hub_that_does_not_answer_is_told_apart(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Hub("http://127.0.0.1:9").use_in_process(monkeypatch, tmp_path)  # the discard port: nothing listens
    with pytest.raises(HubUnreachableError, match="cannot be reached"):
        download_bytes(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        download_bytes(NAME)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("files", "found", "ignored"),
    [
        (["test_resnet.safetensors", "notes.txt"], {"test_resnet": "test_resnet.safetensors"}, {}),
        (["test_resnet.r160_in1k.pth"], {NAME: "test_resnet.r160_in1k.pth"}, {}),
        (["ResNet18.pt"], {"ResNet18": "ResNet18.pt"}, {}),
        (
            ["test_resnet.pt", "test_resnet.safetensors"],
            {"test_resnet": "test_resnet.safetensors"},
            {"test_resnet.pt": "test_resnet.safetensors is used for this network"},
        ),
        (
            ["test_resnet.r160_in1k.pt", "test_resnet.safetensors"],
            {"test_resnet": "test_resnet.safetensors"},
            {"test_resnet.r160_in1k.pt": "test_resnet.safetensors is used for this network"},
        ),
        (
            ["resnet18.a1_in1k.bin", "resnet18.a2_in1k.bin"],
            {"resnet18.a1_in1k": "resnet18.a1_in1k.bin", "resnet18.a2_in1k": "resnet18.a2_in1k.bin"},
            {},
        ),
        (
            ["mobilenetv1_100.pad_same.safetensors", "best.pt"],
            {},
            dict.fromkeys(
                ["mobilenetv1_100.pad_same.safetensors", "best.pt"], "the file is not named after a network of timm"
            ),
        ),
        ([".safetensors", "safetensors"], {}, {}),
        ([], {}, {}),
    ],
    ids=str,
)
def test_files_are_assigned_to_networks_by_their_names(
    files: list[str], found: dict[str, str], ignored: dict[str, str]
) -> None:
    assert weights_in_folder(files) == (found, ignored)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("test_resnet", NAME),
        (NAME, NAME),
        ("timm/ResNet18", "resnet18.a1_in1k"),
        ("hf-hub:someone/birds", "hf-hub:someone/birds"),
        ("basic_cnn", "basic_cnn"),
    ],
)
def test_the_full_name_of_a_network_says_which_pretraining(name: str, full: str) -> None:
    assert full_name(name) == full


def test_a_repository_of_the_hub_is_its_own_location() -> None:
    assert hub_location("hf-hub:someone/birds@v2") == (
        "someone/birds",
        "v2",
        ("model.safetensors", "pytorch_model.bin"),
    )
