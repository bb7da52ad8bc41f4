"""Closed forms: linear heads that need no learning rate, fitted to frozen features in one go.

Both take features [N, D] and labels in [0, C), and give a head as its weight [C, D] and bias [C]: logits are features
times the transposed weight, plus the bias. Inside they compute in double precision; the head is single. They draw
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from xfer.probe import fit_head


def closed_form(
    how: Literal["logistic", "ridge"], features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """The head for each penalty: of `ridge_path`, or of `logistic` for one after the other.

    A penalty's head does not depend on which others are asked for.
    """
    if how == "ridge":
        return ridge_path(features, labels, classes, penalties)
    return [logistic(features, labels, classes, penalty) for penalty in penalties]


def ridge_path(
    features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Least squares on one-hot targets with a penalty on the weights, for many penalties at once.

    Each head minimises |X W' + b - Y|^2 + penalty |W|^2 (Hoerl & Kennard 1970). The bias is not penalised: features and
    targets are centred. One eigendecomposition serves all penalties, of X'X or, with fewer images than features, of
    XX': the time goes with the smaller of the two, cubed.

    The outputs are no log-probabilities: the largest names the class, and nothing is to be read from a softmax.

    Args:
        features: [N, D].
        labels: int64 [N].
        classes: how many there are, C.
        penalties: each above 0.

    Raises:
        ValueError: a penalty that is not above 0, with which the solution may not be unique.
    """
    if wrong := [penalty for penalty in penalties if not 0 < penalty < float("inf")]:
        raise ValueError(
            f"penalty is {wrong[0]}; it must be above 0, and finite: without it many heads fit equally well"
        )
    inputs, targets = features.double(), functional.one_hot(labels, classes).to(features.device, torch.float64)
    middle, shares = inputs.mean(dim=0), targets.mean(dim=0)
    inputs, targets = inputs - middle, targets - shares
    dual = len(inputs) < inputs.shape[1]
    products = inputs @ inputs.T if dual else inputs.T @ inputs
    values, vectors = torch.linalg.eigh(products)
    values = values.clamp(min=0)[:, None]  # to a computer a 0 may be a hair below
    # W' = V (S + penalty)^-1 V' X'Y  =  X' U (S + penalty)^-1 U' Y
    back = inputs.T @ vectors if dual else vectors
    onto = vectors.T @ (targets if dual else inputs.T @ targets)
    weights = [(back @ (onto / (values + penalty))).T for penalty in penalties]
    return [(weight.float(), (shares - weight @ middle).float()) for weight in weights]


def logistic(
    features: Tensor, labels: Tensor, classes: int, penalty: float = 1.0, steps: int = 1_000
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by L-BFGS from a head of zeros, with `xfer.probe.fit_head`'s penalty.

    The head minimises the sum of cross-entropies plus penalty |W|^2 / 2; the problem is convex, so it is the only one.

    Args:
        features: [N, D].
        labels: int64 [N].
        classes: how many there are, C.
        penalty: above 0; the inverse of scikit-learn's C.
        steps: at most so many iterations.

    Raises:
        ValueError: a penalty that is not above 0: separable classes would drive the weights to infinity.
    """
    if not 0 < penalty < float("inf"):
        raise ValueError(
            f"penalty is {penalty}; it must be above 0, and finite: without it weights may grow without end"
        )
    with torch.device("meta"):  # no random numbers
        head = nn.Linear(features.shape[1], classes, dtype=torch.float64)
    head.to_empty(device=features.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    inputs = features.double()
    middle = inputs.mean(dim=0)  # taken off first: the bias makes up for it, and there is less to descend
    fit_head(head, inputs - middle, labels.to(features.device), steps, penalty, tolerance=1e-10)
    weight = head.weight.detach()
    return weight.float(), (head.bias.detach() - weight @ middle).float()
