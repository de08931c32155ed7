"""Whether a model's confidence means what it says: expected calibration error, likelihood, and temperature scaling.

    measure(image_Nd, class_Cd, label_N, scale, world)
    # {"ece": 0.031, "nll": 1.84, "bins": [...], "fitted_scale": 71.2, "ece_fitted": 0.012, "nll_fitted": 1.80}

The confidence in an answer is the softmax over all candidates of ``scale * cosine``, with the scale (1 / temperature) that the
model learned. It is sorted into 15 bins of equal width, and

    ECE = sum over bins of  (samples in the bin / all) * |accuracy in the bin - mean confidence in the bin|

(Guo et al. 2017). Temperature scaling finds the scale with the best likelihood on every second sample and is judged on the
others. For retrieval each query is a classification over the gallery; an answer is right if the best candidate is its own.

Shapes: N samples (queries), C candidates, d = embedding width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pipeline import dist
from pipeline.dist import World
from pipeline.eval.scores import my_rows, score_rows, to_grid

BINS = 15
MAX_FIT = 5000
"""Samples that the scale is fitted on: each step of the search scores them against every candidate."""


def measure(query_Nd: Tensor, candidate_Cd: Tensor, own_N: Tensor, scale: float, world: World) -> dict[str, Any]:
    """Calibration of the answers to N queries among C candidates; the same on every rank.

    Args:
        query_Nd: unit rows.
        candidate_Cd: unit rows.
        own_N: int64, the candidate that is right.
        scale: 1 / temperature of the model.
        world: who shares the work.
    """
    query_Nd, candidate_Cd = to_grid(query_Nd), to_grid(candidate_Cd)
    judged_N = torch.arange(len(query_Nd), device=query_Nd.device) % 2 == 1
    plain_N3 = _gathered(query_Nd, candidate_Cd, own_N, scale, world)
    result = {"scale": round(scale, 4), **_summary(plain_N3), "bins": bins(plain_N3[:, 0], plain_N3[:, 1])}
    if len(query_Nd) < 4:
        return result
    fit = (~judged_N).nonzero().squeeze(1)[:MAX_FIT]
    fitted = fit_scale(query_Nd[fit], candidate_Cd, own_N[fit], scale, world)
    scaled_N3 = _gathered(query_Nd, candidate_Cd, own_N, fitted, world)
    after = {f"{name}_fitted": value for name, value in _summary(scaled_N3[judged_N]).items()}
    before = {f"{name}_judged": value for name, value in _summary(plain_N3[judged_N]).items()}
    return {**result, "fitted_scale": round(fitted, 4), **before, **after}


def outcomes(query_Nd: Tensor, candidate_Cd: Tensor, own_N: Tensor, scale: float) -> Tensor:
    """For each query: confidence in the best answer, whether it is right (1 or 0), and -log p of the right one; [N, 3].

    Of equally good candidates the first wins. Float64; both matrices from ``scores.to_grid``.
    """
    parts = [query_Nd.new_zeros(0, 3)]
    for rows, score_NC in score_rows(query_Nd, candidate_Cd):
        log_p_NC = (scale * score_NC).log_softmax(dim=1)
        best_N = score_NC.argmax(dim=1)
        right_N = (best_N == own_N[rows]).to(log_p_NC.dtype)
        columns = torch.stack([best_N, own_N[rows]], dim=1)
        log_p_N2 = log_p_NC.gather(1, columns)
        parts.append(torch.stack([log_p_N2[:, 0].exp(), right_N, -log_p_N2[:, 1]], dim=1))
    return torch.cat(parts)


def _gathered(query_Nd: Tensor, candidate_Cd: Tensor, own_N: Tensor, scale: float, world: World) -> Tensor:
    mine = my_rows(len(query_Nd), world)
    return dist.all_gather_rows(outcomes(query_Nd[mine], candidate_Cd, own_N[mine], scale))


def _summary(outcome_N3: Tensor) -> dict[str, float]:
    confidence_N, right_N, nll_N = outcome_N3.unbind(dim=1)
    return {
        "ece": round(ece(confidence_N, right_N), 6),
        "nll": round(float(nll_N.mean()), 6),
        "mean_confidence": round(float(confidence_N.mean()), 6),
    }


def ece(confidence_N: Tensor, right_N: Tensor) -> float:
    """Expected calibration error over ``BINS`` bins of equal width, (0, 1/15], (1/15, 2/15], ..."""
    total = 0.0
    for entry in bins(confidence_N, right_N):
        total += entry["count"] / len(confidence_N) * abs(entry["accuracy"] - entry["confidence"])
    return total


def bins(confidence_N: Tensor, right_N: Tensor) -> list[dict[str, float]]:
    """Count, accuracy and mean confidence of every bin that is not empty, for reliability diagrams."""
    place_N = (confidence_N * BINS).ceil().long().clamp(1, BINS) - 1
    found = []
    for place in sorted(set(place_N.tolist())):
        inside_N = place_N == place
        found.append(
            {
                "from": place / BINS,
                "count": int(inside_N.sum()),
                "accuracy": float(right_N[inside_N].mean()),
                "confidence": float(confidence_N[inside_N].mean()),
            }
        )
    return found


def fit_scale(query_Nd: Tensor, candidate_Cd: Tensor, own_N: Tensor, start: float, world: World) -> float:
    """The scale within a factor of 100 of ``start`` at which the right answers are most likely, to a thousandth of it.

    The likelihood is log-concave in the scale, so a golden-section search finds its only maximum. Ranks share the queries; each
    adds up all of their likelihoods, in the set's order, and so takes the same next step.
    """
    low, high = math.log(start / 100), math.log(start * 100)
    ratio = (math.sqrt(5) - 1) / 2
    mine = my_rows(len(query_Nd), world)
    own_n1 = own_N[mine, None]
    scored = list(score_rows(query_Nd[mine], candidate_Cd))  # at most MAX_FIT x C

    def loss(log_scale: float) -> float:
        scale = math.exp(log_scale)
        parts = [(scale * scores).log_softmax(dim=1).gather(1, own_n1[rows]) for rows, scores in scored]
        log_p_N1 = dist.all_gather_rows(torch.cat([query_Nd.new_zeros(0, 1), *parts]))
        return -float(log_p_N1.mean())

    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [loss(inner[0]), loss(inner[1])]
    while high - low > 1e-3:
        if values[0] <= values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - ratio * (high - low)
            values[0] = loss(inner[0])
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + ratio * (high - low)
            values[1] = loss(inner[1])
    return math.exp((low + high) / 2)
