"""From the store's words to MLflow's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sweeps.engine.storage import json_objects
from xfer.objectives import Objective, parse_objectives
from xfer.records import LIST_FIELDS, Epoch, Evaluation, Record, as_dict, epoch_from_dict
from xfer.storage import object_store

if TYPE_CHECKING:
    from mlflow.entities import Metric

SYSTEM_METRICS = ("cpu_percent", "memory_mb", "peak_memory_mb", "gpu_percent", "gpu_memory_mb", "micro_batch")
"""What an Epoch says of the machine: MLflow shows everything named `system/...` on a page of its own."""


def redact_password(text: str) -> str:
    """`text` with the `user:password@` taken out of every address in it.

    >>> redact_password("no answer from https://me:secret@host/mlflow")
    'no answer from https://host/mlflow'
    """
    return re.sub(r"://[^/\s@]+@", "://", text)


def flatten_params(plain: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow's params; what is called by a name stands under the key itself.

    >>> flatten_params({"strategy": {"name": "freeze_then_unfreeze", "freeze_epochs": 2}, "clip_norm": None})
    {'strategy': 'freeze_then_unfreeze', 'strategy.freeze_epochs': '2', 'clip_norm': 'none'}
    """
    params: dict[str, str] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            params |= {key if name == "name" else f"{key}.{name}": text for name, text in flatten_params(value).items()}
        else:
            params[key] = "none" if value is None else str(value)
    return params


def list_trials(trials: Path) -> list[str]:
    """The trials that there are, without reading any of them."""
    return object_store.list_names(trials)


def unsent_epochs(folder: Path, steps: set[int]) -> tuple[Epoch, ...]:
    """The epochs of a trial but for those at `steps`, without reading these again."""
    paths = [path for path in json_objects.list_objects(folder / "epochs") if int(path.stem) not in steps]
    return tuple(epoch_from_dict(epoch) for epoch in json_objects.get_all(paths) if epoch is not None)


def modified_ms(*paths: Path) -> int:
    """When the first of `paths` that exists was written, in ms.

    Objects never change, so a value that is sent twice has the same time twice, and MLflow keeps one.
    """
    return next((at for path in paths if (at := object_store.modified_ms(path)) is not None), 0)


def to_metrics(values: Mapping[str, float | None], at: int, step: int = 0, model_id: str | None = None) -> list[Metric]:
    """MLflow's metrics for those values that there are."""
    from mlflow.entities import Metric

    present = {key: float(value) for key, value in values.items() if value is not None}
    return [Metric(key, value, at, step, model_id) for key, value in present.items()]


def epoch_metrics(epoch: Epoch, folder: Path) -> list[Metric]:
    """One metric for each field of an epoch, at the time at which it was written down.

    The gradient's norms at the first steps of all are a metric of their own, whose steps are those.
    """
    at = modified_ms(folder / "epochs" / f"{epoch.epoch:04d}.json", folder / "record.json")
    values = {key: value for key, value in as_dict(epoch).items() if key not in ("epoch", *LIST_FIELDS)}
    values = {f"system/{key}" if key in SYSTEM_METRICS else key: value for key, value in values.items()}
    first_steps = [
        each
        for step, norm in enumerate(epoch.gradient_norms, start=1)
        for each in to_metrics({"first_steps/gradient_norm": norm}, at, step)
    ]
    return [*to_metrics({**values, "gap": epoch.gap}, at, epoch.epoch), *first_steps]


def record_metrics(record: Record, at: int) -> list[Metric]:
    """How a trial began, and what it took, that in a section of its own: the UI makes one of what precedes a slash."""
    costs = {
        "cost/seconds": record.seconds,
        "cost/parameters": record.parameters,
        "cost/trainable_parameters": record.trainable_parameters,
        "cost/flops": record.flops,
    }
    return [*to_metrics(costs, at, len(record.epochs)), *to_metrics({"start_accuracy": record.start_accuracy}, at)]


def test_metrics(test: Evaluation, at: int) -> list[Metric]:
    """What the test part said, noise by kind in a section of its own."""
    values = {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_top5_accuracy": test.top5_accuracy,
        "test_balanced_accuracy": test.balanced_accuracy,
        "test_calibration_error": test.calibration_error,
        "test_noisy_accuracy": test.noisy_accuracy,
    }
    kinds: dict[str, list[float]] = {}
    for noisy in test.noisy:
        kinds.setdefault(noisy.kind, []).append(noisy.accuracy)
    return to_metrics({**values, **{f"test_noise/{kind}": fmean(found) for kind, found in kinds.items()}}, at)


def best_metrics(ended: Iterable[Mapping[str, float]], objectives: Iterable[Objective]) -> dict[str, float]:
    """The best that trials reached, from the last values of their metrics: what no trial has is left out."""
    best: dict[str, float] = {}
    values = list(ended)
    for objective in objectives:
        known = [metrics[objective.metric] for metrics in values if objective.metric in metrics]
        if known:
            best[f"best_{objective.metric}"] = max(known, key=objective.to_score)
    return best


def plan_objectives(plan: Mapping[str, Any]) -> tuple[Objective, ...]:
    """What a sweep searches for; a plan from before there was a choice means accuracy."""
    return parse_objectives(",".join(plan.get("objective", ["accuracy"])))


def run_name(trial: str, recipe: Mapping[str, Any]) -> str:
    """What a trial's run is called in the UI."""
    return f"{trial} {recipe['strategy']['name']}"


def record_tags(record: Record) -> dict[str, str]:
    """How a trial ended, and what tells it from others."""
    tags = {"xfer.status": record.status, "xfer.key": record.key, "xfer.id": record.id}
    if record.status == "pruned":  # MLflow draws KILLED like FAILED: the name says that all is well
        tags["xfer.pruned_at"] = str(len(record.epochs))
        tags["mlflow.runName"] = f"{run_name(record.trial, record.recipe)}, pruned at {len(record.epochs)}"
    if record.error is not None:
        tags["xfer.error"] = redact_password(record.error)
    if record.resumed_at:
        tags["xfer.resumed_at"] = ", ".join(map(str, record.resumed_at))
    return tags


def plan_tags(plan: Mapping[str, Any]) -> dict[str, str]:
    """What may change when the sweep is resumed stands here: a param of MLflow's is fixed for ever."""
    command = redact_password(plan["provenance"]["command"])
    return {
        "xfer.trials": str(plan["trials"]),
        "mlflow.note.content": f"{plan['question']}\n\n{escape_markdown(command, *plan['data']['notes'])}",
        "mlflow.source.name": plan["experiment"],  # of a command the UI shows what follows its last slash
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": str(plan["provenance"]["commit"]),
    }


def escape_markdown(*lines: str) -> str:
    """Lines for MLflow's Markdown that mean what they say: a file's or a class's name may hold anything."""
    return "".join(f"    {json.dumps(line, ensure_ascii=False)[1:-1]}\n" for line in lines)


def plan_params(plan: Mapping[str, Any]) -> dict[str, str]:
    """What a sweep's parent run is about; nothing that resuming may change."""
    data = {key: value for key, value in plan["data"].items() if key not in ("classes", "notes")}
    chosen = ("image_size", "epochs", "sampler", "scheduler", "finalists", "seeds", "seed", "space")
    return flatten_params(
        {"data": {**data, "classes": len(plan["data"]["classes"])}}
        | {"backbones": ", ".join(backbone["name"] for backbone in plan["backbones"])}
        | {"objective": ",".join(objective.name for objective in plan_objectives(plan))}
        | {key: plan[key] for key in chosen}
    )
