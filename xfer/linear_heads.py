"""Closed forms: linear heads that need no learning rate, fitted to frozen features in one go.

Both take features [N, D] and labels in [0, C), and give a head as its weight [C, D] and bias [C]: logits are features
times the transposed weight, plus the bias. Inside they compute in double precision; the head is single. They draw
nothing, and the time of both goes with the smaller of N and D, cubed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

log = logging.getLogger(__name__)

MAX_STEPS = 500
"""Iterations of L-BFGS at most; tens to hundreds are usual: 5,000 images of 100 classes took 3 s."""
TOLERANCE = 1e-7
"""Where no number of the gradient of the mean loss is larger, in the scaled directions, a logistic head is the one."""


def fit_closed_form(
    how: Literal["logistic", "ridge"], features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """The head for each penalty, by `logistic_path` or by `ridge_path`, on the features' device.

    A penalty's head does not depend on which others are asked for.
    """
    path = {"logistic": logistic_path, "ridge": ridge_path}[how]
    device = features.device
    if device.type == "mps":  # it knows no double precision
        features, labels = features.cpu(), labels.cpu()
    found = path(features, labels, classes, penalties)
    return [(weight.to(device), bias.to(device)) for weight, bias in found]


def ridge_path(
    features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Least squares on one-hot targets with a penalty on the weights, for many penalties at once.

    Each head minimises |X W' + b - Y|^2 + penalty |W|^2 (Hoerl & Kennard 1970). The bias is not penalised: features and
    targets are centred. One eigendecomposition serves all penalties.

    The outputs are no log-probabilities: the largest names the class, and nothing is to be read from a softmax.

    Args:
        features: [N, D].
        labels: int64 [N].
        classes: how many there are, C.
        penalties: each above 0.

    Raises:
        ValueError: a penalty that is not above 0, with which the solution may not be unique.
    """
    _check(penalties)
    rows, middle, values, basis = _principal(features)
    targets = functional.one_hot(labels, classes).to(features.device, torch.float64)
    shares = targets.mean(dim=0)
    onto = rows.T @ (targets - shares)  # in this basis X'X is diagonal
    weights = [(basis @ (onto / (values[:, None] + penalty))).T for penalty in penalties]
    return [(weight.float(), (shares - weight @ middle).float()) for weight in weights]


def logistic_path(
    features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Multinomial logistic regression by L-BFGS, each penalty from a head of zeros.

    Each head minimises the sum of cross-entropies plus penalty |W|^2 / 2, where the penalty is the inverse of
    scikit-learn's C; the problem is convex, so it is the only one. It is descended in the principal directions of the
    features, each scaled by how much the loss bends there (for equally likely classes), so that all bend alike.

    Args:
        features: [N, D].
        labels: int64 [N].
        classes: how many there are, C.
        penalties: each above 0.

    Raises:
        ValueError: a penalty that is not above 0: separable classes would drive the weights to infinity.
    """
    _check(penalties)
    rows, middle, values, basis = _principal(features)
    found = []
    for penalty in penalties:
        scale = (values * (classes - 1) / classes**2 + penalty).rsqrt() * len(rows) ** 0.5
        weight, bias = _descended(rows * scale, labels.to(rows.device), classes, penalty * scale.square() / len(rows))
        weight = (weight * scale) @ basis.T
        found.append((weight.float(), (bias - weight @ middle).float()))
    return found


def _descended(rows: Tensor, labels: Tensor, classes: int, penalties: Tensor) -> tuple[Tensor, Tensor]:
    """The head [C, K], [C] that minimises mean cross-entropy on rows [N, K] plus half its squares, times [K]."""
    weight = rows.new_zeros(classes, rows.shape[1], requires_grad=True)
    bias = rows.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_STEPS,
        max_eval=2 * MAX_STEPS,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(rows, weight, bias), labels)
        loss = loss + (weight.square() @ penalties).sum() / 2
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    closure()
    assert weight.grad is not None
    if (left := float(weight.grad.abs().max())) > 100 * TOLERANCE:
        log.warning("a logistic head is not quite the one after %d iterations: its gradient is %g", MAX_STEPS, left)
    return weight.detach(), bias.detach()


def _principal(features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centred features X [N, D] in their principal directions, [N, K], K at most the smaller of N and D.

    With them the means [D] that were taken off, the eigenvalues [K] of X'X and its eigenvectors [D, K].
    """
    middle = features.double().mean(dim=0)
    inputs = features.double().sub_(middle)
    if len(inputs) >= inputs.shape[1]:
        values, basis = torch.linalg.eigh(inputs.T @ inputs)
        return inputs @ basis, middle, values.clamp(min=0), basis  # to a computer a 0 may be a hair below
    values, left = torch.linalg.eigh(inputs @ inputs.T)
    real = values > values[-1] * len(inputs) * torch.finfo(torch.float64).eps
    roots, left = values[real].sqrt(), left[:, real]
    return left * roots, middle, values[real], inputs.T @ (left / roots)


def _check(penalties: Sequence[float]) -> None:
    if wrong := [penalty for penalty in penalties if not 0 < penalty < float("inf")]:
        raise ValueError(
            f"penalty is {wrong[0]}; it must be above 0, and finite: without it many heads fit equally well"
        )


def fit_head(
    head: nn.Module, embeddings: Tensor, labels: Tensor, steps: int = 200, penalty: float = 1.0, tolerance: float = 1e-6
) -> float:
    """Fit a head in place by L-BFGS on all examples at once; the final cross-entropy.

    The penalty is that of logistic regression as commonly used, |w|^2 / 2 for the sum of losses over all examples,
    times `penalty`: without it separable classes would drive the weights to infinity. Deterministic; for a linear head
    the problem is convex, so the end does not depend on the start.

    Args:
        head: makes logits [N, C] of embeddings.
        embeddings: [N, D].
        labels: int64 [N].
        steps: at most so many iterations.
        penalty: above 0; the inverse of scikit-learn's C.
        tolerance: it ends where no number of the gradient is larger, or the loss changes by less than a thousandth.
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
        optimizer.zero_grad()
        size = sum((weight.square().sum() for weight in weights), embeddings.new_zeros(())) / 2
        loss = functional.cross_entropy(head(embeddings), labels) + penalty * size / len(labels)
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float(functional.cross_entropy(head(embeddings), labels))
