"""A store with one trial of each final status, and an existing MLflow database."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.engine import tracking
from sweeps.engine.storage.store import Store
from sweeps.engine.tracking import default_tracking_uri
from tests.engine.tracking.mirror_helpers import PLAN, end_trial


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Store:
    """A sweep of three trials, one of each final status, in a storage that has an MLflow database."""
    storage = tmp_path / "my runs"
    storage.mkdir()
    (storage / "mlflow.db").write_bytes(empty_database.read_bytes())  # creating a database takes 1.5 s, so copy one
    store = Store(storage / PLAN["name"])
    store.put_plan(PLAN)
    end_trial(store, "0000", 3, "finished")
    end_trial(store, "0001", 2, "pruned")
    end_trial(store, "0002", 1, "failed")
    return store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an empty MLflow database."""
    folder = tmp_path_factory.mktemp("mlflow")
    tracking.connect_mlflow(default_tracking_uri(folder))
    return folder / "mlflow.db"
