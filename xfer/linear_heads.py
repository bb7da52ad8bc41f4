"""Linear heads fitted to frozen features without gradient steps: ridge and logistic regression.

`ridge_path` and `logistic_path` take features [N, D] and labels in [0, C) and return heads as weight [C, D] and bias
[C]: logits are features times the transposed weight, plus the bias. They compute in double precision and return single
precision. They use no random numbers, and take time cubic in the smaller of N and D.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfer.devices import heartbeat

log = logging.getLogger(__name__)

MAX_STEPS = 500
"""Maximum number of L-BFGS iterations; tens to hundreds are usual: 5,000 images of 100 classes took 3 s."""
TOLERANCE = 1e-7
"""Largest gradient entry (of the mean loss, in the scaled directions) at which a logistic head counts as converged."""


def fit_closed_form(
    how: Literal["logistic", "ridge"], features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Fits one head per penalty with `logistic_path` or `ridge_path`, on the features' device.

    A penalty's head does not depend on the other penalties.

    Args:
        how: the kind of regression.
        features: [N, D].
        labels: int64 [N], in [0, C).
        classes: number of classes, C.
        penalties: each above 0.

    Returns:
        Weight [C, D] and bias [C] for each penalty.
    """
    path = {"logistic": logistic_path, "ridge": ridge_path}[how]
    device = features.device
    if device.type == "mps":  # no double precision there
        features, labels = features.cpu(), labels.cpu()
    heads = path(features, labels, classes, penalties)
    return [(weight.to(device), bias.to(device)) for weight, bias in heads]


def ridge_path(
    features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Least squares on one-hot targets with an L2 penalty on the weights, for many penalties at once.

    Each head minimises |X W' + b - Y|^2 + penalty |W|^2 (Hoerl & Kennard 1970, Technometrics). The bias is not
    penalised: features and targets are centred. One eigendecomposition serves all penalties.

    The outputs are not log-probabilities: the largest one is the predicted class, but their softmax means nothing.

    Args:
        features: [N, D].
        labels: int64 [N], in [0, C).
        classes: number of classes, C.
        penalties: each above 0.

    Returns:
        Weight [C, D] and bias [C] for each penalty.

    Raises:
        ValueError: If a penalty is not above 0, where the solution may not be unique.
    """
    _check_penalties(penalties)
    rows, mean, values, basis = _principal_directions(features)
    targets = functional.one_hot(labels, classes).to(features.device, torch.float64)
    class_means = targets.mean(dim=0)
    projected = rows.T @ (targets - class_means)  # in this basis X'X is diagonal
    weights = [(basis @ (projected / (values[:, None] + penalty))).T for penalty in penalties]
    return [(weight.float(), (class_means - weight @ mean).float()) for weight in weights]


def logistic_path(
    features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], tolerance: float = TOLERANCE
) -> list[tuple[Tensor, Tensor]]:
    """Multinomial logistic regression by L-BFGS, starting from zeros for each penalty.

    Each head minimises the sum of cross-entropies plus penalty |W|^2 / 2, where the penalty is the inverse of
    scikit-learn's C; the problem is convex, so the minimum is unique. It is solved in the principal directions of the
    features, each scaled by the curvature of the loss along it (for equally likely classes), which makes the problem
    well conditioned.

    Args:
        features: [N, D].
        labels: int64 [N], in [0, C).
        classes: number of classes, C.
        penalties: each above 0.
        tolerance: largest gradient entry at which a head counts as converged, see `TOLERANCE`.

    Returns:
        Weight [C, D] and bias [C] for each penalty.

    Raises:
        ValueError: If a penalty is not above 0: separable classes would drive the weights to infinity.
    """
    _check_penalties(penalties)
    rows, mean, values, basis = _principal_directions(features)
    heads = []
    for penalty in penalties:
        scale = (values * (classes - 1) / classes**2 + penalty).rsqrt() * len(rows) ** 0.5
        row_penalties = penalty * scale.square() / len(rows)
        weight, bias = _minimise(rows * scale, labels.to(rows.device), classes, row_penalties, tolerance)
        weight = (weight * scale) @ basis.T
        heads.append((weight.float(), (bias - weight @ mean).float()))
    return heads


def _minimise(rows: Tensor, labels: Tensor, classes: int, penalties: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Minimises mean cross-entropy on rows [N, K] plus half the squared weights times `penalties` [K].

    Returns:
        Weight [C, K] and bias [C].
    """
    weight = rows.new_zeros(classes, rows.shape[1], requires_grad=True)
    bias = rows.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_STEPS,
        max_eval=2 * MAX_STEPS,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        heartbeat.beat()
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(rows, weight, bias), labels)
        loss = loss + (weight.square() @ penalties).sum() / 2
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    closure()
    assert weight.grad is not None
    if (largest := float(weight.grad.abs().max())) > 100 * tolerance:
        log.warning(
            "a logistic head has not converged after %d iterations: its largest gradient entry is %g",
            MAX_STEPS,
            largest,
        )
    return weight.detach(), bias.detach()


def _principal_directions(features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rotates centred features X [N, D] to their principal directions: [N, K], K at most min(N, D).

    Returns:
        The rotated features, the subtracted means [D], the eigenvalues [K] of X'X and its eigenvectors [D, K].
    """
    mean = features.double().mean(dim=0)
    inputs = features.double().sub_(mean)
    if len(inputs) >= inputs.shape[1]:
        values, basis = torch.linalg.eigh(inputs.T @ inputs)
        return inputs @ basis, mean, values.clamp(min=0), basis  # rounding may make a 0 slightly negative
    values, vectors = torch.linalg.eigh(inputs @ inputs.T)
    nonzero = values > values[-1] * len(inputs) * torch.finfo(torch.float64).eps
    roots, vectors = values[nonzero].sqrt(), vectors[:, nonzero]
    return vectors * roots, mean, values[nonzero], inputs.T @ (vectors / roots)


def _check_penalties(penalties: Sequence[float]) -> None:
    if invalid := [penalty for penalty in penalties if not 0 < penalty < float("inf")]:
        raise ValueError(
            f"penalty must be above 0 and finite, got {invalid[0]}: without a penalty many heads fit equally well"
        )


def fit_head(
    head: nn.Module, embeddings: Tensor, labels: Tensor, steps: int = 200, penalty: float = 1.0, tolerance: float = 1e-6
) -> float:
    """Fits a head in place by L-BFGS on all examples at once.

    The penalty is that of standard logistic regression, |w|^2 / 2 for the sum of losses over all examples, times
    `penalty`: without it separable classes would drive the weights to infinity. Deterministic; for a linear head the
    problem is convex, so the result does not depend on the initial weights.

    Args:
        head: maps embeddings to logits [N, C].
        embeddings: [N, D].
        labels: int64 [N].
        steps: maximum number of iterations.
        penalty: above 0; the inverse of scikit-learn's C.
        tolerance: stops when no gradient entry is larger, or the loss changes by less than a thousandth of it.

    Returns:
        The final mean cross-entropy, in nats, without the penalty.
    """
    weights = [parameter for parameter in head.parameters() if parameter.ndim > 1]
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=steps,
        tolerance_grad=tolerance,
        tolerance_change=tolerance / 1000,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        heartbeat.beat()
        optimizer.zero_grad()
        size = sum((weight.square().sum() for weight in weights), embeddings.new_zeros(())) / 2
        loss = functional.cross_entropy(head(embeddings), labels) + penalty * size / len(labels)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float(functional.cross_entropy(head(embeddings), labels))
