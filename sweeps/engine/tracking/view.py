"""The table of a sweep's trials in MLflow's UI: which runs it shows, in which order and with which columns.

The UI reads filter and order from its address, but columns only from a saved view: a tag of the experiment, which the
address names. Each sweep gets such a tag, so the UI also lists its table under the sweep's name.

A saved view cannot say which parent runs are expanded. It need not: a table that is ordered by a metric is flat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from sweeps.engine.tracking.mapping import created_ms, plan_objectives, sweep_id

VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the tags of an experiment that hold saved views."""

AS_MODEL_TRAINING = "workflowType=machine_learning"
"""Part of an address that skips MLflow's pages about language models, which show no runs like ours."""

COLUMNS = {
    "params.`strategy`": 150,
    "metrics.`val_accuracy`": 110,
    "metrics.`test_accuracy`": 110,
    "tags.`xfer.status`": 110,
    "tags.`xfer.phase`": 80,
    "params.`optimizer`": 90,
    "params.`learning_rate`": 170,
    "params.`augmentation`": 140,
    "params.`backbone`": 140,
    "metrics.`val_loss`": 90,
    "metrics.`cost/seconds`": 110,
    "params.`trainable_parameters`": 150,
}
"""Columns of the table from left to right, with their width in pixels."""


def view_tag(plan: Mapping[str, Any]) -> tuple[str, str]:
    """Return key and value of the experiment's tag that holds the table of a sweep's trials.

    Args:
        plan: the sweep's plan.json.
    """
    filter_and_order = _filter_and_order(plan)
    columns = {"params.`strategy`": COLUMNS["params.`strategy`"], filter_and_order["orderByKey"]: 110, **COLUMNS}
    state = {
        **filter_and_order,
        "selectedColumns": list(columns),
        "columnOrder": list(columns),
        "columnWidths": columns,
    }
    # Earlier versions of MLflow read the state itself, later ones the same state in an envelope with its name.
    envelope = {"name": plan["name"], "createdAt": created_ms(plan), "state": json.dumps(state)}
    return f"{VIEW_TAG}{sweep_id(plan)}", json.dumps({**state, **envelope})


def trials_page(server: str, experiment: str, plan: Mapping[str, Any], has_view: bool) -> str:
    """Return the address of the table of a sweep's trials, best first.

    Args:
        server: address of MLflow's server.
        experiment: id of the sweep's experiment in MLflow.
        plan: the sweep's plan.json.
        has_view: whether the experiment has the tag of `view_tag`; if not, the table has MLflow's default columns.
    """
    # The UI ignores a saved view if the address has a filter or an order of its own.
    query = {"viewStateShareKey": sweep_id(plan)} if has_view else _filter_and_order(plan)
    words = {key: json.dumps(value) if isinstance(value, bool) else value for key, value in query.items()}
    return f"{server}/#/experiments/{experiment}/runs?{AS_MODEL_TRAINING}&{urlencode(words)}"


def progress_page(server: str, experiment: str, run: str) -> str:
    """Return the address of the charts of a sweep's progress.

    Args:
        server: address of MLflow's server.
        experiment: id of the sweep's experiment in MLflow.
        run: id of the sweep's parent run in MLflow.
    """
    return f"{server}/#/experiments/{experiment}/runs/{run}/model-metrics?{AS_MODEL_TRAINING}"


def _filter_and_order(plan: Mapping[str, Any]) -> dict[str, Any]:
    objective = plan_objectives(plan)[0]
    return {
        "searchFilter": f"tags.`xfer.sweep` = '{sweep_id(plan)}' AND tags.`xfer.trial` != ''",
        "orderByKey": f"metrics.`{objective.metric}`",
        "orderByAsc": not objective.higher_is_better,
    }
