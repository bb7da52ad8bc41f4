"""Zero-effort rows: accuracies of classifiers for which no network was trained, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KNN, LOGISTIC_PROBE, ZERO_SHOT = "knn", "logistic_probe", "zero_shot"
"""Methods of the rows."""

Row = Mapping[str, Any]
"""Method, its settings (`k`, `penalty` or `prompts`), and the numbers of `correct`, evaluated (`images`) and training
images (`train_images`)."""


def row_label(row: Row) -> str:
    """Name the method of a row.

    >>> row_label({"method": "knn", "k": 5}), row_label({"method": "logistic_probe", "penalty": 1.0})
    ('kNN (k=5)', 'logistic probe')
    >>> row_label({"method": "zero_shot", "prompts": 1}), row_label({"method": "zero_shot", "prompts": 7})
    ('zero-shot (1 prompt)', 'zero-shot (7 prompts)')
    """
    if row["method"] == ZERO_SHOT:
        return f"zero-shot ({row['prompts']} {'prompt' if row['prompts'] == 1 else 'prompts'})"
    return f"kNN (k={row['k']})" if row["method"] == KNN else "logistic probe"
