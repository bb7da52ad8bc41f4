"""The winner's model is logged once and loads without pickle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sweeps.engine import tracking
from sweeps.engine.storage.store import Store
from sweeps.engine.tracking import Mirror
from tests.engine.tracking.mirror_helpers import PLAN, mlflow_contents, uri_of

MODEL = {
    "backbone": "mobilenetv2_100",
    "backbone_args": {},
    "num_classes": 2,
    "classes": ["ants", "bees"],
    "image_size": 8,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "resize": "bilinear",
}


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported model, and a fake of xfer/training/export.py that classifies by brightness without torch."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "model.safetensors").write_bytes(b"\0" * 64)

    def load_classifier(folder: Path) -> SimpleNamespace:
        assert json.loads((folder / "model.json").read_text()) == MODEL

        def probabilities(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            bright = images.reshape(len(images), -1).mean(axis=1) / 255
            return np.stack([1 - bright, bright], axis=1)

        return SimpleNamespace(classes=("ants", "bees"), image_size=8, probabilities=probabilities)

    fake = ModuleType("xfer.training.export")
    fake.load_classifier = load_classifier  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xfer.training.export", fake)
    return folder


def test_the_winners_model_loads_and_predicts_without_pickle(
    store: Store, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    mirror = Mirror(store, uri_of(store))
    assert mirror.log_model("0000", exported, {"test_accuracy": 0.93})
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr("pickle.load", None)
    client = tracking.connect_mlflow(uri_of(store))
    parent = mlflow_contents(store)[""]
    [model] = client.search_logged_models([parent.info.experiment_id])
    assert (model.name, model.status, model.source_run_id) == (PLAN["name"], "READY", parent.id)
    assert model.params["strategy.freeze_epochs"] == "2"
    assert [(metric.key, metric.value) for metric in model.metrics or []] == [("test_accuracy", 0.93)]
    assert parent.values["test_accuracy"] == [(0, 0.93)]
    assert (parent.tags["xfer.winner"], parent.tags["xfer.model"]) == ("0000", model.model_id)

    folder = Path(model.artifact_location.removeprefix("file://").replace("%20", " "))
    assert sorted(path.name for path in folder.iterdir()) == [
        "MLmodel", "README.md", "conda.yaml", "data", "python_env.yaml", "requirements.txt"]  # fmt: skip
    assert "\n    ants\n    bees\n" in (folder / "README.md").read_text()
    logged = mlflow.models.Model.load(str(folder))
    assert logged.metadata == MODEL
    loaded = mlflow.pyfunc.load_model(str(folder))
    images = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)])
    assert loaded.predict(images).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        loaded.predict(np.zeros((2, 9, 9, 3), np.uint8))


def test_the_winners_model_is_logged_once_and_retried_after_an_error(
    store: Store, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def fail(*_: Any) -> None:
        raise ConnectionError("the artifact store is unavailable")

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", fail)
    mirror = Mirror(store, uri_of(store))
    assert not mirror.log_model("0000", exported, {"test_accuracy": 0.93})
    monkeypatch.undo()
    assert mirror.sync()
    assert Mirror(store, uri_of(store)).log_model("0000", exported, {"test_accuracy": 0.93})
    client = tracking.connect_mlflow(uri_of(store))
    models = client.search_logged_models([mlflow_contents(store)[""].info.experiment_id])
    assert sorted(str(model.status) for model in models) == ["FAILED", "READY"]
