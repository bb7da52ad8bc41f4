"""Logs the winner's model to MLflow without pickle, and defines the class that MLflow loads it into."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from sweeps.engine.tracking.client import MirroredSweep, log_batch
from sweeps.engine.tracking.mapping import escape_markdown, flatten_params, to_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class ExportedModel:
    """An exported model and its metrics."""

    trial: str
    folder: Path
    metrics: Mapping[str, float]


def log_model(
    client: MlflowClient,
    sweep: MirroredSweep,
    plan: Mapping[str, Any],
    recipe: Mapping[str, Any],
    winner: ExportedModel,
) -> None:
    """Log the winner's model to the parent run, unless it is already logged.

    Args:
        client: client of the tracking server or database.
        sweep: the sweep as MLflow has it.
        plan: the sweep's plan.json.
        recipe: the winner's recipe, logged as the model's params.
        winner: the exported model.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    if client.get_run(sweep.parent.id).data.tags.get("xfer.winner") == winner.trial:
        return
    model_info = json.loads((winner.folder / "model.json").read_text(encoding="utf-8"))
    size, card = model_info["image_size"], _model_card(plan, winner, model_info)
    images = TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(model_info["classes"])))
    tags = {"xfer.trial": winner.trial, "xfer.sweep": sweep.id, "mlflow.note.content": card}
    name = re.sub(r"[^\w-]", "-", plan["name"])  # MLflow allows no dots or colons here
    model = client.create_logged_model(
        sweep.experiment, name, sweep.parent.id, tags, flatten_params(recipe), model_type="image classifier"
    )
    try:
        with TemporaryDirectory() as folder:
            saved = Path(folder) / "model"
            save_model(
                saved,
                loader_module=__name__,  # MLflow calls its _load_pyfunc instead of unpickling
                data_path=str(winner.folder),
                mlflow_model=Model(run_id=sweep.parent.id, model_id=model.model_id, model_uuid=model.model_id),
                signature=ModelSignature(Schema([images]), Schema([probabilities])),
                metadata=model_info,
                # If not given, MLflow loads the model in a subprocess to infer them.
                pip_requirements=[f"{name}=={version(name)}" for name in ("numpy", "safetensors", "timm", "torch")],
            )
            (saved / "README.md").write_text(card, encoding="utf-8")
            client.log_model_artifacts(model.model_id, str(saved))
        client.finalize_logged_model(model.model_id, "READY")
    except Exception:
        with suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.log_outputs(sweep.parent.id, [LoggedModelOutput(model.model_id, step=0)])
    metrics = to_metrics(winner.metrics, int(time.time() * 1000), model_id=model.model_id)
    log_batch(client, sweep.parent, metrics, tags={"xfer.winner": winner.trial, "xfer.model": model.model_id})


def _model_card(plan: Mapping[str, Any], winner: ExportedModel, model_info: Mapping[str, Any]) -> str:
    """Return the model card as Markdown."""
    data, size, classes = plan["data"], model_info["image_size"], model_info["classes"]
    metrics = "".join(f"| {name} | {value:.4f} |\n" for name, value in winner.metrics.items())
    settings = [f"{key}: {model_info[key]}" for key in ("backbone", "image_size", "resize", "mean", "std")]
    return f"""# The winner: trial {winner.trial}

{escape_markdown(f"sweep: {plan['name']}", f"data: {data['folder']}")}
{data["train"]} training images, {data["val"]} validation images, {data["test"]} test images.

| metric | value |
|---|---|
{metrics}
**Input**: images, uint8 [N, {size}, {size}, 3]. **Output**: probabilities, float32 [N, {len(classes)}], of the classes

{escape_markdown(*classes)}
**Preprocessing**: resize images to that size. The model normalizes them itself, with mean and std for values in [0, 1].

{escape_markdown(*settings)}
The weights are stored as safetensors, and nothing is pickled. With `sweeps` and `xfer` installed, load the model with

    mlflow.pyfunc.load_model("models:/<the id of this model>").predict(images)
"""


class ImageClassifier:
    """The model in MLflow's Python flavor: maps images to class probabilities."""

    def __init__(self, folder: Path) -> None:
        from xfer.training.export import load_classifier  # imports torch, which a sweep's driver does not need

        self._classifier = load_classifier(folder)

    def predict(self, images: np.ndarray[Any, Any], params: Mapping[str, Any] | None = None) -> np.ndarray[Any, Any]:
        """Return class probabilities, float32 [N, C], for uint8 images [N, H, W, 3]; `params` is ignored."""
        return np.asarray(self._classifier.probabilities(images), dtype=np.float32)


def _load_pyfunc(data_path: str) -> ImageClassifier:
    """Load the model; MLflow looks this function up in the `loader_module`."""
    return ImageClassifier(Path(data_path))
