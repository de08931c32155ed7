"""Logistic regression, which linear probes and the separability of two modalities are made of.

    weights = fit(x_Nd, label_N, num_classes=10, regularisation=1.0)
    accuracy = (predict(weights, test_Nd) == test_label_N).double().mean()

Minimises ``0.5 * |W|^2 + C * sum of cross entropies`` with an intercept that is not penalised: scikit-learn's default problem.
Float64 and L-BFGS, so that the minimum is found to many digits and the answer does not depend on the number of ranks.

Shapes: N rows, d features, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ITERATIONS = 500


class Weights(NamedTuple):
    """A fitted classifier: slopes [d, C] and intercepts [C], float64."""

    slope_dC: Tensor
    intercept_C: Tensor


def fit(x_Nd: Tensor, label_N: Tensor, num_classes: int, regularisation: float) -> Weights:
    """The minimiser.

    Args:
        x_Nd: features.
        label_N: int64 in [0, num_classes).
        num_classes: C.
        regularisation: C of the formula: larger trusts the data more.
    """
    x_Nd = x_Nd.double()
    parameters = x_Nd.new_zeros(x_Nd.shape[1] + 1, num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=MAX_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_NC = x_Nd @ parameters[:-1] + parameters[-1]
        # Divided by C * N: the same minimiser, at a scale that suits the optimizer's tolerances.
        penalty = 0.5 * parameters[:-1].square().sum() / (regularisation * len(x_Nd))
        value = F.cross_entropy(logits_NC, label_N) + penalty
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = parameters.detach()
    return Weights(found[:-1], found[-1])


def predict(weights: Weights, x_Nd: Tensor) -> Tensor:
    """The most likely class of each row, int64 [N]."""
    return (x_Nd.double() @ weights.slope_dC + weights.intercept_C).argmax(dim=1)
