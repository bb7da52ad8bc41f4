"""Maps plans, recipes, epochs and records to MLflow's params, metrics and tags."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sweeps.engine.storage import json_objects
from sweeps.reporting.formatting import format_status
from xfer.measure.class_accuracy import class_accuracies
from xfer.objectives import Objective, parse_objectives
from xfer.records import LIST_FIELDS, Epoch, Evaluation, Record, as_dict, epoch_from_dict
from xfer.storage import object_store
from xfer.storage.redaction import redact

if TYPE_CHECKING:
    from mlflow.entities import Metric

SYSTEM_METRICS = ("cpu_percent", "memory_mb", "peak_memory_mb", "gpu_percent", "gpu_memory_mb", "micro_batch")
"""Fields of an Epoch that describe the machine. MLflow shows metrics named `system/...` on a separate page."""


def flatten_params(settings: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested settings to MLflow's params with dotted keys; the key `name` of a setting is dropped.

    >>> flatten_params({"strategy": {"name": "freeze_then_unfreeze", "freeze_epochs": 2}, "clip_norm": None})
    {'strategy': 'freeze_then_unfreeze', 'strategy.freeze_epochs': '2', 'clip_norm': 'none'}
    """
    params: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            params |= {key if name == "name" else f"{key}.{name}": text for name, text in flatten_params(value).items()}
        else:
            params[key] = "none" if value is None else str(value)
    return params


def unsent_epochs(folder: Path, steps: set[int]) -> tuple[Epoch, ...]:
    """Read the epochs of a trial, except those whose numbers are in `steps`."""
    paths = [path for path in json_objects.list_objects(folder / "epochs") if int(path.stem) not in steps]
    return tuple(epoch_from_dict(epoch) for epoch in json_objects.get_all(paths) if epoch is not None)


def modified_ms(*paths: Path) -> int:
    """Return when the first existing path was written, in ms since the epoch, or 0 if none exists.

    Objects never change, so a metric that is sent twice has the same timestamp, and MLflow stores it once.
    """
    return next((time for path in paths if (time := object_store.modified_ms(path)) is not None), 0)


def to_metrics(
    values: Mapping[str, float | None], timestamp: int, step: int = 0, model_id: str | None = None
) -> list[Metric]:
    """Return MLflow's metrics for all values that are not None.

    Args:
        values: values by name of the metric.
        timestamp: time in ms since the epoch.
        step: step of all the metrics.
        model_id: id of the logged model that they describe, if any.
    """
    from mlflow.entities import Metric

    return [Metric(key, float(value), timestamp, step, model_id) for key, value in values.items() if value is not None]


def epoch_metrics(epoch: Epoch, folder: Path) -> list[Metric]:
    """Return one metric per field of an epoch, with the time at which the epoch was stored.

    The gradient norms of the first training steps are a separate metric, `first_steps/gradient_norm`, with one value
    per training step.
    """
    timestamp = modified_ms(folder / "epochs" / f"{epoch.epoch:04d}.json", folder / "record.json")
    values = {key: value for key, value in as_dict(epoch).items() if key not in ("epoch", "kept", *LIST_FIELDS)}
    values = {f"system/{key}" if key in SYSTEM_METRICS else key: value for key, value in values.items()}
    first_steps = [
        metric
        for step, norm in enumerate(epoch.gradient_norms, start=1)
        for metric in to_metrics({"first_steps/gradient_norm": norm}, timestamp, step)
    ]
    return [*to_metrics({**values, "gap": epoch.gap}, timestamp, epoch.epoch), *first_steps]


def record_metrics(record: Record, timestamp: int) -> list[Metric]:
    """Return the metrics of a whole trial: its accuracy before training and in its worst class, and its duration.

    MLflow's UI groups metrics by the part of their name before a slash.
    """
    cost = to_metrics({"cost/seconds": record.seconds}, timestamp, len(record.epochs))
    values = {"start_accuracy": record.start_accuracy, **_worst_class("val", record.val)}
    return [*cost, *to_metrics(values, timestamp)]


def record_params(record: Record) -> dict[str, str]:
    """Return the constants of a trial that are known once it has ended; as metrics they would be charts of one dot."""
    constants = {
        "parameters": record.parameters,
        "trainable_parameters": record.trainable_parameters,
        "flops": record.flops,
        "arithmetic": record.arithmetic,
    }
    return {key: str(value) for key, value in constants.items() if value is not None}


def test_metrics(test: Evaluation, timestamp: int) -> list[Metric]:
    """Return the metrics of an evaluation on the test part, with the mean accuracy for each kind of noise."""
    values = {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_top5_accuracy": test.top5_accuracy,
        "test_balanced_accuracy": test.balanced_accuracy,
        "test_calibration_error": test.calibration_error,
        "test_noisy_accuracy": test.noisy_accuracy,
        "test_flip_accuracy": test.flip_accuracy,
        **_worst_class("test", test),
    }
    by_kind: dict[str, list[float]] = {}
    for noisy in test.noisy:
        by_kind.setdefault(noisy.kind, []).append(noisy.accuracy)
    noise = {f"test_noise/{kind}": fmean(accuracies) for kind, accuracies in by_kind.items()}
    return to_metrics({**values, **noise}, timestamp)


def test_tags(test: Evaluation, plan: Mapping[str, Any]) -> dict[str, str]:
    """Return the tag that names the class with the lowest accuracy on the test part; none without class results."""
    found = class_accuracies([test])
    return {"xfer.test_worst_class": str(plan["data"]["classes"][found[0].label])} if found else {}


def _worst_class(split: str, evaluation: Evaluation | None) -> dict[str, float | None]:
    """Return the accuracy in the class with the lowest one, its index, and the number of its images."""
    found = class_accuracies([evaluation]) if evaluation else []
    if not found:
        return {}
    worst = found[0]
    return {
        f"{split}_worst_class_accuracy": worst.accuracy,
        f"{split}_worst_class_index": float(worst.label),
        f"{split}_worst_class_images": float(worst.images),
    }


def plan_objectives(plan: Mapping[str, Any]) -> tuple[Objective, ...]:
    """Return the objectives of a plan.json; plans of earlier versions have none and mean accuracy."""
    return parse_objectives(",".join(plan.get("objective", ["accuracy"])))


def run_name(trial: str, recipe: Mapping[str, Any]) -> str:
    """Return the name of a trial's run in MLflow's UI."""
    return f"{trial} {recipe['strategy']['name']}"


def record_state(record: Record) -> str:
    """Return the value of the tag `xfer.status` of a trial that has ended."""
    return format_status(record.status)


def record_tags(record: Record) -> dict[str, str]:
    """Return the tags of a trial that has ended: status, key, id, and if any, the weights it kept and its error."""
    tags = {"xfer.status": record_state(record), "xfer.key": record.key, "xfer.id": record.id}
    if record.status == "pruned":  # MLflow shows it like one that finished, so its name says that it did not
        tags["xfer.pruned_at"] = str(len(record.epochs))
        stopped = format_status(record.status, len(record.epochs))
        tags["mlflow.runName"] = f"{run_name(record.trial, record.recipe)}, {stopped}"
    if record.kept is not None:
        tags["xfer.kept"] = record.kept
    if record.error is not None:
        tags["xfer.error"] = redact(record.error)
    if record.resumed_at:
        tags["xfer.resumed_at"] = ", ".join(map(str, record.resumed_at))
    return tags


def created_ms(plan: Mapping[str, Any]) -> int:
    """Return when a sweep was started, in ms since the epoch."""
    return int(datetime.fromisoformat(plan["provenance"]["created"]).timestamp() * 1000)


def sweep_id(plan: Mapping[str, Any]) -> str:
    """Return the value of the tag `xfer.sweep` of a sweep's runs: a hash, which needs no quoting anywhere."""
    created = datetime.fromisoformat(plan["provenance"]["created"])
    return hashlib.sha256(f"{plan['name']} {created.isoformat()}".encode()).hexdigest()[:16]


def plan_tags(plan: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a sweep's parent run: values that may change when it is resumed, unlike MLflow's params."""
    command = redact(plan["provenance"]["command"])
    return {
        "xfer.trials": str(plan["trials"]),
        "mlflow.note.content": f"{plan['question']}\n\n{escape_markdown(command, *plan['data']['notes'])}",
        "mlflow.source.name": plan["experiment"],  # the UI shows only the part after the last slash
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": str(plan["provenance"]["commit"]),
    }


def escape_markdown(*lines: str) -> str:
    """Return lines as a code block in Markdown, because names of files and classes may contain markup."""
    return "".join(f"    {json.dumps(line, ensure_ascii=False)[1:-1]}\n" for line in lines)


def plan_params(plan: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of a sweep's parent run: values that cannot change when the sweep is resumed."""
    data = {key: value for key, value in plan["data"].items() if key not in ("classes", "notes")}
    fields = ("image_size", "sampler", "scheduler", "finalists", "seeds", "seed", "space")
    lengths = ("epochs", "steps", "lengths")  # plan.json has the one that the user chose, or the default's
    return flatten_params(
        {"data": {**data, "classes": len(plan["data"]["classes"])}}
        | {"backbones": ", ".join(backbone["name"] for backbone in plan["backbones"])}
        | {"objective": ",".join(objective.name for objective in plan_objectives(plan))}
        | {key: plan[key] for key in (*fields, *(length for length in lengths if length in plan))}
    )
