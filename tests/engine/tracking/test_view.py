"""The address of a sweep's table in MLflow's UI, and the saved view that it names."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import pytest

from sweeps.engine import tracking
from sweeps.engine.storage.store import Store
from sweeps.engine.tracking import Mirror, sweep_pages
from sweeps.engine.tracking.view import trials_page, view_tag
from tests.engine.tracking.mirror_helpers import PLAN, uri_of

MAX_TAG_LENGTH = 5000
"""Maximum length of the value of an experiment's tag in MLflow."""


def view_of(plan: dict[str, Any]) -> dict[str, Any]:
    """The state that the UI takes from the saved view of a sweep."""
    _, value = view_tag(plan)
    view = json.loads(value)
    state: dict[str, Any] = json.loads(view["state"])
    assert {key: view[key] for key in state} == state  # where earlier versions look for it
    assert view["name"] == plan["name"]
    return state


@pytest.mark.parametrize(
    ("objective", "key", "ascending"),
    [
        (["accuracy"], "metrics.`val_accuracy`", False),
        (["loss"], "metrics.`val_loss`", True),
        (["noisy_accuracy", "seconds"], "metrics.`val_noisy_accuracy`", False),
    ],
)
def test_a_sweeps_view_has_its_trials_best_first(objective: list[str], key: str, ascending: bool) -> None:
    view = view_of({**PLAN, "objective": objective})
    assert (view["orderByKey"], view["orderByAsc"]) == (key, ascending)
    assert {key, "params.`strategy`", "metrics.`val_accuracy`", "tags.`xfer.status`"} <= set(view["selectedColumns"])
    assert len(set(view["selectedColumns"])) == len(view["selectedColumns"])


def test_a_view_is_not_too_long_for_a_tag() -> None:
    _, value = view_tag({**PLAN, "name": "x" * 100, "objective": ["balanced_accuracy", "seconds"]})
    assert len(value) < MAX_TAG_LENGTH


def test_the_mirror_saves_a_view_of_each_sweep(store: Store) -> None:
    other = Store(store.folder.parent / 'it\'s "other"')
    other.put_plan({**PLAN, "name": other.name})
    for one in (store, other, store):
        assert Mirror(one, uri_of(store)).sync()
    experiment = tracking.connect_mlflow(uri_of(store)).get_experiment_by_name("folder")
    assert experiment is not None
    expected = dict(view_tag(plan) for one in (store, other) if (plan := one.plan()) is not None)
    assert expected.items() <= experiment.tags.items()


def test_the_filter_of_a_view_selects_the_trials_of_its_sweep(store: Store) -> None:
    other = Store(store.folder.parent / "other")
    other.put_plan({**PLAN, "name": "other"})
    for one in (store, other):
        assert Mirror(one, uri_of(store)).sync()
    view = view_of(PLAN)
    client = tracking.connect_mlflow(uri_of(store))
    experiment = client.get_experiment_by_name("folder")
    assert experiment is not None
    order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
    runs = client.search_runs([experiment.experiment_id], view["searchFilter"], order_by=[order])
    assert [run.data.tags["xfer.trial"] for run in runs] == ["0000", "0001", "0002"]


def test_without_a_saved_view_the_address_has_filter_and_order() -> None:
    address = trials_page("http://127.0.0.1:5000", "7", PLAN, has_view=False)
    page, _, query = address.partition("?")
    assert page == "http://127.0.0.1:5000/#/experiments/7/runs"
    view = view_of(PLAN)
    assert {key: values[0] for key, values in parse_qs(query).items()} == {
        "workflowType": "machine_learning",
        "searchFilter": view["searchFilter"],
        "orderByKey": "metrics.`val_accuracy`",
        "orderByAsc": "false",
    }


def test_a_sweep_that_mlflow_lacks_has_no_pages(store: Store) -> None:
    assert sweep_pages(uri_of(store), PLAN) == {}
    Mirror(store, uri_of(store)).sync()
    assert list(sweep_pages(uri_of(store), PLAN)) == ["trials, best first", "progress"]
    assert sweep_pages(uri_of(store), {**PLAN, "name": "another"}) == {}
