"""Zero-shot classification: an image-text network compares images with the names of their classes.

No labelled image is used (Radford et al. 2021, https://arxiv.org/abs/2103.00020). The networks are those of open_clip
(Ilharco et al. 2021, https://github.com/mlfoundations/open_clip), installed with `pip install 'xfer[zero-shot]'`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from xfer.advice.prompts import PROMPTS, class_words
from xfer.data.loader import iter_batches
from xfer.data.pack import Pack
from xfer.data.split import Indices
from xfer.devices.device import default_device
from xfer.measure.zero_effort import ZERO_SHOT

FORMS = "NAME=FILE or NAME=TAG with a name and a tag of open_clip, hf-hub:OWNER/NAME, or local-dir:DIR"
"""How an image-text network is written."""

HUB, LOCAL = "hf-hub:", "local-dir:"
"""Prefixes by which open_clip finds a network together with its settings."""

BATCH_SIZE = 64


def check_network(text: str) -> None:
    """Check what can be checked of an image-text network without loading it.

    Args:
        text: the network, as in `FORMS`.

    Raises:
        ValueError: open_clip is not installed, or the text has another form, or names an unknown network, a missing
            file or folder, or a tag that the network does not have.
    """
    open_clip = _open_clip()
    if text.startswith(HUB):
        return
    if text.startswith(LOCAL):
        folder = Path(text.removeprefix(LOCAL)).expanduser()
        if not (folder / "open_clip_config.json").is_file():
            raise ValueError(f"--zero-shot {text}: {folder} has no open_clip_config.json; give {FORMS}")
        return
    name, equals, weights = text.partition("=")
    if not equals or not name or not weights:
        raise ValueError(f"--zero-shot {text}: give {FORMS}")
    if name not in (names := open_clip.list_models()):
        close = [other for other in names if name.casefold() in other.casefold()][:5]
        suggestion = f"; similar ones: {', '.join(close)}" if close else ""
        raise ValueError(f"--zero-shot {text}: open_clip has no network {name}{suggestion}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not Path(weights).expanduser().is_file() and weights not in tags:
        known = ", ".join(tags) or "none"
        raise ValueError(f"--zero-shot {text}: {weights} is neither a file nor one of the tags of {name}: {known}")


def network_label(text: str) -> str:
    """Return the name of an image-text network for readers, without the folders; empty for none.

    >>> [network_label(text) for text in ("ViT-B-32=openai", "ViT-B-32=/data/clip.pt", "local-dir:/data/clip")]
    ['ViT-B-32=openai', 'ViT-B-32=clip.pt', 'clip']
    """
    if not text or text.startswith(HUB):
        return text.removeprefix(HUB)
    if text.startswith(LOCAL):
        return Path(text.removeprefix(LOCAL)).expanduser().resolve().name
    name, _, weights = text.partition("=")
    return f"{name}={Path(weights).name}"


def zero_shot_rows(
    text: str, pack: Pack, indices: Indices, device: torch.device | None = None
) -> Iterator[dict[str, Any]]:
    """Yield one row per set of prompts.

    The images are those of the pack, scaled to the size of the network: at the small sizes of some packs a network sees
    less than it was trained on.

    Args:
        text: the network, as in `FORMS`.
        pack: the data.
        indices: the images to classify.
        device: where the network runs; by default the best one.

    Raises:
        ValueError: the class names are not words, or the network cannot be loaded.
    """
    words = class_words(pack.classes)
    open_clip, device = _open_clip(), device or default_device()
    model, tokenizer = _load(open_clip, text, device)
    with torch.inference_mode():
        texts = [
            open_clip.build_zero_shot_classifier(model, tokenizer, words, prompts, device=device) for prompts in PROMPTS
        ]
        embeddings = torch.cat(
            [
                model.encode_image(_prepare(open_clip, model, images.to(device)), normalize=True)
                for images, _ in iter_batches(pack, indices, BATCH_SIZE)
            ]
        )
    truth = pack.labels[indices]
    for prompts, class_embeddings in zip(PROMPTS, texts, strict=True):
        predicted: NDArray[np.int64] = (embeddings @ class_embeddings).argmax(dim=1).cpu().numpy()
        counts = {"correct": int((predicted == truth).sum()), "images": len(truth), "train_images": 0}
        yield {"method": ZERO_SHOT, "prompts": len(prompts), **counts}


def _load(open_clip: Any, text: str, device: torch.device) -> tuple[Any, Any]:
    """Return the network in evaluation mode, and its tokenizer."""
    if text.startswith(HUB):
        name, weights = text, None
    elif text.startswith(LOCAL):
        name, weights = f"{LOCAL}{Path(text.removeprefix(LOCAL)).expanduser()}", None
    else:
        name, _, weights = text.partition("=")
        file = Path(weights).expanduser()
        weights = str(file) if file.is_file() else weights
    try:
        model = open_clip.create_model(
            name, pretrained=weights, device=device, pretrained_text=False, require_pretrained=True
        )
        return model.eval(), open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip raises errors of many kinds, also for weights of another network
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"--zero-shot {text}: the network cannot be loaded: {reason}") from error


def _prepare(open_clip: Any, model: Any, images: Tensor) -> Tensor:
    """Turn uint8 images [B, 3, H, W] into inputs of the network, with its size, mean and standard deviation."""
    settings = open_clip.get_model_preprocess_cfg(model)
    size = settings["size"]
    mean, std = (torch.tensor(settings[name], device=images.device)[:, None, None] for name in ("mean", "std"))
    scaled = functional.interpolate(images.float() / 255, size, mode="bicubic", antialias=True, align_corners=False)
    return (scaled.clamp(0, 1) - mean) / std


def _open_clip() -> Any:
    try:
        import open_clip  # optional
    except ImportError as error:
        raise ValueError(
            "--zero-shot needs open_clip_torch, which is not installed: pip install 'xfer[zero-shot]'"
        ) from error
    return open_clip
