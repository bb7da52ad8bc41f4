"""Shared fixtures: a tiny data set, its pack, tiny networks with weights, and a finished Record.

Torch and xfer are imported inside the fixtures, so that the tests of sweeps.reporting run without torch.
"""

from __future__ import annotations

import gc
import json
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from xfer.data.pack import Pack
    from xfer.recipe import Recipe
    from xfer.records import Record
    from xfer.run import Run

ROOT = Path(__file__).parent.parent
BACKBONE = "test_efficientnet"  # the smallest of timm's networks for tests: 0.1 million parameters
CLASSES = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
PER_CLASS = 12
SIZE = 32


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Exempt from garbage collection what thousands of tests leave behind when they are collected.

    These millions of objects live to the end. With them each full collection, as every out-of-memory retry starts one,
    took a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else extension modules report leaks at exit


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Set torch to one thread: results are bit-identical only for the same number of threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 noisy images in a folder per class; the classes differ in color. Half are PNG, half JPEG."""
    root = tmp_path_factory.mktemp("images") / "colours"
    rng = np.random.default_rng(0)
    for name, colour in CLASSES.items():
        (root / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = np.clip(rng.normal(colour, 30, size=(40, 48, 3)), 0, 255).astype(np.uint8)
            suffix = "png" if number % 2 else "jpg"
            Image.fromarray(pixels).save(root / name / f"{number:02d}.{suffix}")
    return root


@pytest.fixture(scope="session")
def pack(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Pack of `image_folder` at 32 pixels; its split has 24 training, 6 validation and 6 test images."""
    from xfer.data.image_folder import folder
    from xfer.data.pack import build_pack

    return build_pack(folder(image_folder), SIZE, tmp_path_factory.mktemp("packs"))


@pytest.fixture(scope="session")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that writes "pretrained" weights of a timm network for 5 classes, random but reproducible."""
    folder = tmp_path_factory.mktemp("weights")

    def file(backbone: str) -> Path:
        import safetensors.torch
        import timm
        import torch
        from torch import nn

        path = folder / f"{backbone}.safetensors"
        if not path.exists():
            size = {"img_size": SIZE} if timm.get_pretrained_cfg(backbone).fixed_input_size else {}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1234)
                model = timm.create_model(backbone, num_classes=5, **size)
                for module in model.modules():
                    # In a new network, residual branches start at 0.
                    if isinstance(module, nn.BatchNorm2d):
                        module.running_mean.normal_(0, 0.1)
                        module.running_var.uniform_(0.5, 1.5)
                        nn.init.uniform_(module.weight, 0.5, 1.5)
            safetensors.torch.save_file(model.state_dict(), path)
        return path

    return file


@pytest.fixture(scope="session")
def image_text_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny image-text network with random weights, in the format of open_clip, for images of 40 pixels."""
    import open_clip
    import safetensors.torch
    import torch

    tower = {"layers": 1, "width": 16}
    model_settings = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 40, "patch_size": 8, "head_width": 8, **tower},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "heads": 2, **tower},
    }
    preprocessing = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.3, 0.2, 0.1],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    folder = tmp_path_factory.mktemp("image_text") / "tiny_clip"
    folder.mkdir()
    settings = {"model_cfg": model_settings, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**model_settings)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def weights(weights_of: Callable[[str], Path]) -> Path:
    """Weights for BACKBONE."""
    return weights_of(BACKBONE)


@pytest.fixture(scope="session")
def make_recipe(pack: Pack, weights_of: Callable[[str], Path]) -> Callable[..., Recipe]:
    """Return a function that builds recipes on `pack`, by default of two short epochs.

    Choices can be given by name. The weights depend on strategy and backbone, the default clip norm on the strategy.
    For strategies without gradient steps, values without effect are set as the recipe requires.
    """
    from xfer import hashing
    from xfer.choices import choose
    from xfer.methods.strategies import STRATEGIES
    from xfer.recipe import CHOICE_TABLES, closed_form_values, recipe_from_dict

    def recipe(**changes: Any) -> Recipe:
        plain: dict[str, Any] = {
            "data": pack.hash,
            "classes": len(CLASSES),
            "image_size": SIZE,
            "backbone": BACKBONE,
            "strategy": "naive",
            "optimizer": "sgd",
            "schedule": "cosine",
            "augmentation": "none",
            "mixing": "none",
            "loss": "cross_entropy",
            "learning_rate": 0.01,
            "weight_decay": 1e-4,
            "batch_size": 8,
            "epochs": 2,
            **changes,
        }
        plain |= {kind: {"name": plain[kind]} for kind in CHOICE_TABLES if isinstance(plain.get(kind), str)}
        if plain["strategy"]["name"] in STRATEGIES:
            strategy = choose("strategy", STRATEGIES, **plain["strategy"]).build(STRATEGIES)
            plain |= {} if strategy.steps else closed_form_values()
            plain.setdefault("clip_norm", strategy.clip_norm)
            plain["backbone"] = strategy.backbone or plain["backbone"]
            if "weights" not in plain:
                plain["weights"] = hashing.sha256_file(weights_of(plain["backbone"])) if strategy.pretrained else ""
        return recipe_from_dict({"weights": "", **plain})

    return recipe


@pytest.fixture(scope="session")
def make_run(one_thread: None, pack: Pack, weights_of: Callable[[str], Path]) -> Callable[..., Run]:
    """Return a function that creates a Run of a recipe of `make_recipe`, on the CPU."""
    import torch

    from xfer.run import Run

    def run(recipe: Recipe, folder: Path | None = None) -> Run:
        file = weights_of(recipe.backbone) if recipe.weights else None
        return Run(recipe, pack, file, device=torch.device("cpu"), folder=folder)

    return run


@pytest.fixture(scope="session")
def record(make_recipe: Callable[..., Recipe], make_run: Callable[..., Run]) -> Record:
    """Record of a run of two epochs."""
    run = make_run(make_recipe())
    list(run)
    return run.record(trial="0000")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real photos and real weights, next to the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    return folder


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """URL of a local server that imitates S3, running for the whole session."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a new, empty bucket, with credentials in the environment and a separate local cache."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unused")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unused")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("XFER_CACHE", str(tmp_path / "cache"))
    name = f"test-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
