"""How images and texts lie on the unit sphere: alignment, uniformity, the gap between the modalities, and its shape.

Squared distances of unit rows are ``2 - 2 cos``, so that with Wang & Isola's t = 2 (2020):

    alignment            mean |i - t|^2 over matched pairs = 2 - 2 * mean matched cosine; 0 is perfect
    uniformity           log mean exp(-2 |x - y|^2) over different rows = log mean exp(4 cos - 4);
                         about -4 is perfect, 0 is collapsed
    cross uniformity     the same between images and texts of other samples
    centroid distance    |mean image - mean text|, the modality gap of Liang et al. (2022); 0 to 2
    linear separability  accuracy on held-out pairs of telling images from texts by a hyperplane (Fahim et al. 2024);
                         0.5 is mixed, 1 is apart. Needed beside the distance, which can be small while this is 1
    effective rank       exp of the entropy of the centred rows' singular values (Roy & Vetterli 2007); 1 to d
    hubness              skewness of how often each image is among the 10 nearest of a text (Radovanovic et al. 2010); 0 is fair
    gap shift            what happens when images are moved along the gap: centroid distance, contrastive loss, recall

Pairs of a row with itself are left out. The numbers depend on how many samples they are taken over, so it is given too.

Shapes: N matched pairs, d = embedding width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.eval import logistic

HISTOGRAM_BINS = 40
SHIFTS = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
MAX_SHIFTED = 2000
"""Pairs of the gap shift, which holds all their cosines at once."""

_CHUNK_ROWS = 512


def log_mean_potential(x_Nd: Tensor, y_Nd: Tensor) -> float:
    """``log mean exp(4 cos(x_i, y_j) - 4)`` over all i != j; needs N > 1. float64, a chunk of rows at a time."""
    x_Nd, y_Nd = x_Nd.to(torch.float64), y_Nd.to(torch.float64)
    total = 0.0
    for start in range(0, len(x_Nd), _CHUNK_ROWS):
        rows_Bd = x_Nd[start : start + _CHUNK_ROWS]
        potential_BN = (4.0 * (rows_Bd @ y_Nd.T) - 4.0).exp()
        own_B = torch.arange(len(rows_Bd), device=rows_Bd.device)
        potential_BN[own_B, start + own_B] = 0.0
        total += float(potential_BN.sum())
    return math.log(total / (len(x_Nd) * (len(x_Nd) - 1)))


def measure(image_Nd: Tensor, text_Nd: Tensor, scale: float = 100.0) -> dict[str, Any]:
    """All of the module docstring for N > 1 matched pairs of unit rows, rounded to six decimals.

    Args:
        image_Nd: unit rows.
        text_Nd: unit rows, row i of which belongs to image i.
        scale: 1 / temperature of the contrastive loss along the gap shift.
    """
    assert len(image_Nd) == len(text_Nd) > 1, f"need at least two matched pairs, got {len(image_Nd)} and {len(text_Nd)}"
    image_Nd, text_Nd = image_Nd.to(torch.float64), text_Nd.to(torch.float64)
    matched_cosine = float((image_Nd * text_Nd).sum(dim=1).mean())
    values = {
        "matched_cosine": matched_cosine,
        "alignment": 2.0 - 2.0 * matched_cosine,
        "uniformity_image": log_mean_potential(image_Nd, image_Nd),
        "uniformity_text": log_mean_potential(text_Nd, text_Nd),
        "uniformity_cross": log_mean_potential(image_Nd, text_Nd),
        "centroid_distance": float((image_Nd.mean(dim=0) - text_Nd.mean(dim=0)).norm()),
        "linear_separability": linear_separability(image_Nd, text_Nd),
        "effective_rank_image": effective_rank(image_Nd),
        "effective_rank_text": effective_rank(text_Nd),
        "hubness": hubness(text_Nd, image_Nd),
    }
    return {
        "pairs": len(image_Nd),
        **{name: round(value, 6) for name, value in values.items()},
        "cosine_histogram": cosine_histogram(image_Nd, text_Nd),
        "gap_shift": gap_shift(image_Nd[:MAX_SHIFTED], text_Nd[:MAX_SHIFTED], scale),
    }


def linear_separability(image_Nd: Tensor, text_Nd: Tensor) -> float:
    """Accuracy of a logistic regression, fitted on 80 % of the pairs, at telling the modalities of the others apart.

    Every fifth pair is held out, so that the split needs no random numbers. Fewer than five pairs: 0.5, nothing is known.
    """
    held_N = torch.arange(len(image_Nd), device=image_Nd.device) % 5 == 4
    if not bool(held_N.any()):
        return 0.5
    weights = logistic.fit(
        torch.cat([image_Nd[~held_N], text_Nd[~held_N]]), _modality(int((~held_N).sum()), image_Nd), 2, regularisation=1.0
    )
    predicted = logistic.predict(weights, torch.cat([image_Nd[held_N], text_Nd[held_N]]))
    return float((predicted == _modality(int(held_N.sum()), image_Nd)).double().mean())


def _modality(count: int, like: Tensor) -> Tensor:
    return torch.arange(2, device=like.device).repeat_interleave(count)


def effective_rank(x_Nd: Tensor) -> float:
    """``exp(H(p))`` with p the singular values of the centred rows, divided by their sum; 1 where all rows are equal."""
    singular = torch.linalg.svdvals(x_Nd - x_Nd.mean(dim=0))
    total = singular.sum()
    if float(total) < 1e-12:
        return 1.0
    share = singular / total
    return float(torch.special.entr(share).sum().exp())


def hubness(query_Nd: Tensor, gallery_Nd: Tensor, k: int = 10) -> float:
    """Skewness of the number of queries that have each gallery row among their k nearest; 0 where all are met alike."""
    counts_N = torch.zeros(len(gallery_Nd), dtype=torch.float64, device=gallery_Nd.device)
    for start in range(0, len(query_Nd), _CHUNK_ROWS):
        nearest = (query_Nd[start : start + _CHUNK_ROWS] @ gallery_Nd.T).topk(min(k, len(gallery_Nd)), dim=1).indices
        counts_N += torch.bincount(nearest.flatten(), minlength=len(gallery_Nd))
    deviation_N = counts_N - counts_N.mean()
    spread = deviation_N.square().mean().sqrt()
    return float((deviation_N**3).mean() / spread**3) if float(spread) > 0 else 0.0


def cosine_histogram(image_Nd: Tensor, text_Nd: Tensor) -> dict[str, list[int]]:
    """Counts in ``HISTOGRAM_BINS`` equal bins over [-1, 1]: of matched pairs, and of each image with the next sample's text."""
    matched_N = (image_Nd * text_Nd).sum(dim=1)
    other_N = (image_Nd * text_Nd.roll(1, dims=0)).sum(dim=1)
    named = {"matched": matched_N, "other": other_N}
    return {name: cosines.cpu().histc(HISTOGRAM_BINS, -1.0, 1.0).long().tolist() for name, cosines in named.items()}


def gap_shift(image_Nd: Tensor, text_Nd: Tensor, scale: float) -> list[dict[str, float]]:
    """Liang et al.'s probe: images moved by ``shift`` along the gap and normalised again, texts moved the other way.

    For each shift: the signed distance of the centroids, the contrastive loss at ``scale``, and text-to-image recall at 1. A
    gap that the loss wants has its minimum near shift 0.
    """
    gap_d = image_Nd.mean(dim=0) - text_Nd.mean(dim=0)
    length = gap_d.norm()
    if float(length) < 1e-9:
        return []
    direction_d = gap_d / length
    found = []
    for shift in SHIFTS:
        moved = [F.normalize(x_Nd - sign * 0.5 * shift * direction_d, dim=1) for x_Nd, sign in ((image_Nd, 1), (text_Nd, -1))]
        between_d = moved[0].mean(dim=0) - moved[1].mean(dim=0)
        logits_NN = scale * moved[1] @ moved[0].T
        own_N = torch.arange(len(logits_NN), device=logits_NN.device)
        loss = 0.5 * (F.cross_entropy(logits_NN, own_N) + F.cross_entropy(logits_NN.T, own_N))
        sign = 1.0 if float(between_d @ direction_d) >= 0 else -1.0
        found.append(
            {
                "shift": shift,
                "distance": round(sign * float(between_d.norm()), 6),
                "loss": round(float(loss), 6),
                "recall@1": round(float((logits_NN.argmax(dim=1) == own_N).double().mean()), 6),
            }
        )
    return found
