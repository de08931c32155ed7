"""How images and texts lie on the unit sphere: alignment, uniformity, and the gap between the modalities.

Squared distances of unit rows are ``2 - 2 cos``, so that with Wang & Isola's t = 2 (2020):

    alignment            mean |i - t|^2 over matched pairs = 2 - 2 * mean matched cosine; 0 is perfect
    uniformity           log mean exp(-2 |x - y|^2) over different rows = log mean exp(4 cos - 4);
                         about -4 is perfect, 0 is collapsed
    cross uniformity     the same between images and texts of other samples
    centroid distance    |mean image - mean text|, the modality gap of Liang et al. (2022); 0 to 2

Pairs of a row with itself are left out. The numbers depend on how many samples they are taken over, so it is given too.

Shapes: N matched pairs, d = embedding width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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


def measure(image_Nd: Tensor, text_Nd: Tensor) -> dict[str, float | int]:
    """All numbers of the module docstring for N > 1 matched pairs of unit rows, rounded to six decimals."""
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
    }
    return {"pairs": len(image_Nd), **{name: round(value, 6) for name, value in values.items()}}
