"""The winner's model: logged without a pickle, and what MLflow calls to ask it."""

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
    """An exported model, and what it reached."""

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
    """Log the winner's model, unless the parent run has it already."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    if client.get_run(sweep.parent.id).data.tags.get("xfer.winner") == winner.trial:
        return
    about = json.loads((winner.folder / "model.json").read_text())
    size, card = about["image_size"], _card(plan, winner, about)
    images = TensorSpec(np.dtype(np.uint8), (-1, size, size, 3))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, len(about["classes"])))
    tags = {"xfer.trial": winner.trial, "xfer.sweep": sweep.id, "mlflow.note.content": card}
    name = re.sub(r"[^\w-]", "-", plan["name"])  # MLflow takes no dots or colons here
    model = client.create_logged_model(
        sweep.experiment, name, sweep.parent.id, tags, flatten_params(recipe), model_type="image classifier"
    )
    try:
        with TemporaryDirectory() as folder:
            saved = Path(folder) / "model"
            save_model(
                saved,
                loader_module=__name__,  # calls _load_pyfunc below: nothing is pickled
                data_path=str(winner.folder),
                mlflow_model=Model(run_id=sweep.parent.id, model_id=model.model_id, model_uuid=model.model_id),
                signature=ModelSignature(Schema([images]), Schema([probabilities])),
                metadata=about,
                # Given, or MLflow loads the model in a process of its own to find out what that imports.
                pip_requirements=[f"{name}=={version(name)}" for name in ("numpy", "safetensors", "timm", "torch")],
            )
            (saved / "README.md").write_text(card)
            client.log_model_artifacts(model.model_id, str(saved))
        client.finalize_logged_model(model.model_id, "READY")
    except Exception:
        with suppress(Exception):
            client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.log_outputs(sweep.parent.id, [LoggedModelOutput(model.model_id, step=0)])
    reached = to_metrics(winner.metrics, int(time.time() * 1000), model_id=model.model_id)
    log_batch(client, sweep.parent, reached, tags={"xfer.winner": winner.trial, "xfer.model": model.model_id})


def _card(plan: Mapping[str, Any], winner: ExportedModel, about: Mapping[str, Any]) -> str:
    """The model card, in Markdown."""
    data, size, classes = plan["data"], about["image_size"], about["classes"]
    reached = "".join(f"| {name} | {value:.4f} |\n" for name, value in winner.metrics.items())
    settings = [f"{key}: {about[key]}" for key in ("backbone", "image_size", "resize", "mean", "std")]
    return f"""# The winner: trial {winner.trial}

{escape_markdown(f"sweep: {plan['name']}", f"data: {data['folder']}")}
{data["train"]} images to train on, {data["val"]} to select by, {data["test"]} to test on.

| metric | value |
|---|---|
{reached}
**Input**: photos, uint8 [N, {size}, {size}, 3]. **Output**: probabilities, float32 [N, {len(classes)}], of the classes

{escape_markdown(*classes)}
**Preprocessing**: bring photos to that size yourself; mean and std, of values in [0, 1], are seen to.

{escape_markdown(*settings)}
The weights are safetensors, and nothing here is pickled. With `sweeps` and `xfer` installed it is loaded by

    mlflow.pyfunc.load_model("models:/<the id of this model>").predict(images)
"""


class ImageClassifier:
    """What MLflow calls a Python model: images in, a probability per class out."""

    def __init__(self, folder: Path) -> None:
        from xfer.training.export import load_classifier  # brings torch along, which a sweep's driver does without

        self._classifier = load_classifier(folder)

    def predict(self, images: np.ndarray[Any, Any], params: Mapping[str, Any] | None = None) -> np.ndarray[Any, Any]:
        """Probabilities [N, C] for uint8 images [N, H, W, 3]."""
        return np.asarray(self._classifier.probabilities(images), dtype=np.float32)


def _load_pyfunc(data_path: str) -> ImageClassifier:
    """What MLflow looks for in a `loader_module`."""
    return ImageClassifier(Path(data_path))
