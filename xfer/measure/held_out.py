"""Predicted probabilities on images that a network was not trained on, and its temperature; plain NumPy.

Temperature scaling: Guo et al. 2017, https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_STORED_CLASSES = 5
"""Maximum number of most likely classes whose probabilities are stored for each image."""
TEMPERATURE_LIMITS = (0.05, 20.0)
"""Range in which a temperature is searched. A minimum at its ends means that the images do not determine one."""

_PROBABILITY_STEPS = 65_535  # a probability is stored as an unsigned 16-bit integer
_BISECTIONS = 60


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions for the N images of one part of the data. Probabilities are in [0, 1]."""

    images: NDArray[np.int64]
    """[N], indices of the images in the pack."""
    labels: NDArray[np.int64]
    """[N], their classes."""
    classes: NDArray[np.int64]
    """[N, K], the most likely classes, the most likely one first."""
    probabilities: NDArray[np.float64]
    """[N, K], their probabilities."""
    label_probability: NDArray[np.float64]
    """[N], probability of the image's own class."""
    scaled_probability: NDArray[np.float64]
    """[N], probability of the most likely class after temperature scaling."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """[N], the most likely classes."""
        return self.classes[:, 0]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """[N], whether the prediction is the image's class."""
        correct: NDArray[np.bool_] = self.predicted == self.labels
        return correct


@dataclass(frozen=True, eq=False)
class HeldOutRun:
    """Predictions of one finished run on the parts that it was not trained on."""

    temperature: float | None
    """Temperature that minimises the cross-entropy on the validation part; None if the part determines none."""
    val: HeldOut
    test: HeldOut


def predict_held_out(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], images: NDArray[np.int64], temperature: float | None
) -> HeldOut:
    """Compute the predictions for the images of one part.

    Args:
        logits: [N, C].
        labels: [N].
        images: [N], indices in the pack.
        temperature: of the run; None leaves the probabilities as they are.
    """
    probabilities = _softmax(logits)
    classes = np.argsort(-probabilities, axis=1, kind="stable")[:, :MAX_STORED_CLASSES]
    return HeldOut(
        images,
        labels,
        classes,
        np.take_along_axis(probabilities, classes, axis=1),
        probabilities[np.arange(len(labels)), labels],
        _softmax(logits / (temperature or 1.0)).max(axis=1),
    )


def fit_temperature(logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> float | None:
    """Return the temperature that minimises the mean cross-entropy of logits / temperature.

    The cross-entropy is convex in the inverse temperature, so its derivative is bisected.

    Args:
        logits: [N, C].
        labels: [N].

    Returns:
        None if there is no minimum within `TEMPERATURE_LIMITS`: if all images are classified correctly, the
        cross-entropy falls with the temperature down to 0.

    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    >>> round(fit_temperature(logits, np.array([0, 0, 0, 1])), 2)  # three of four are correct: log 9 / log 3
    2.0
    >>> fit_temperature(logits, np.array([0, 0, 0, 0]))
    """
    logits = np.asarray(logits, dtype=np.float64)
    own = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(np.mean((_softmax(logits * inverse) * logits).sum(axis=1) - own))

    low, high = (1 / temperature for temperature in reversed(TEMPERATURE_LIMITS))
    if len(labels) == 0 or not slope(low) < 0 < slope(high):
        return None
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


def run_as_dict(run: HeldOutRun) -> dict[str, Any]:
    """Return plain data for JSON, about 40 bytes per image; `run_from_dict` is the inverse up to rounding."""
    return {"temperature": run.temperature, "val": _part_as_dict(run.val), "test": _part_as_dict(run.test)}


def run_from_dict(plain: Mapping[str, Any]) -> HeldOutRun:
    """Return the HeldOutRun that `run_as_dict` was given, with probabilities rounded to multiples of 1/65535."""
    return HeldOutRun(plain["temperature"], _part_from_dict(plain["val"]), _part_from_dict(plain["test"]))


def _part_as_dict(part: HeldOut) -> dict[str, Any]:
    return {
        "most_likely": part.classes.shape[1],
        "images": _encode(part.images, "<u4"),
        "labels": _encode(part.labels, "<u2"),
        "classes": _encode(part.classes, "<u2"),
        **{
            name: _encode(np.rint(getattr(part, name) * _PROBABILITY_STEPS), "<u2")
            for name in ("probabilities", "label_probability", "scaled_probability")
        },
    }


def _part_from_dict(plain: Mapping[str, Any]) -> HeldOut:
    count = plain["most_likely"]
    images, labels = _decode(plain["images"], "<u4"), _decode(plain["labels"], "<u2")
    probabilities, label_probability, scaled_probability = (
        _decode(plain[name], "<u2") / _PROBABILITY_STEPS
        for name in ("probabilities", "label_probability", "scaled_probability")
    )
    classes = _decode(plain["classes"], "<u2").reshape(-1, count)
    return HeldOut(images, labels, classes, probabilities.reshape(-1, count), label_probability, scaled_probability)


def _encode(values: NDArray[Any], dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()


def _decode(text: str, dtype: str) -> NDArray[np.int64]:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).astype(np.int64)


def _softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    shifted = np.asarray(logits, dtype=np.float64)
    exponentials: NDArray[np.float64] = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
