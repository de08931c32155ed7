"""Zero-shot classification: a class is the mean of what the text tower says about it.

    weights_Cd = classifier(prompt_embeddings, sizes)                    # one unit row per class, of sizes[c] prompts
    found = answers(image_Nd, weights_Cd, label_N, world)                # rank of the right class, and the first one
    summary(found, C)["accuracy@1"], summary(found, C)["mean_per_class@1"]

The unit embeddings of a class's prompts (``prompts.py``) are averaged and normalised again (Radford et al. 2021, section
3.1.4). Of two classes with equal scores the one with the lower index wins, as in
``argmax``.

Shapes: N images, C classes, P prompts of all classes, d = embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline import dist
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.intervals import interval
from pipeline.eval.scores import my_rows, score_rows, to_grid

CUTOFFS = (1, 5)
MAX_CONFUSIONS = 50


def classifier(prompt_Pd: Tensor, sizes: Sequence[int]) -> Tensor:
    """Average each class's prompts to one unit row.

    Args:
        prompt_Pd: unit embeddings of all prompts, class by class.
        sizes: prompts of each of the C classes; their sum is P.

    Returns:
        float64 [C, d], on the grid of ``scores.to_grid``.
    """
    mean_Cd = torch.stack([rows.mean(dim=0) for rows in torch.split(prompt_Pd.to(torch.float64), list(sizes))])
    return to_grid(torch.nn.functional.normalize(mean_Cd, dim=1))


@dataclass(frozen=True)
class Answers:
    """What the classifier said about every image; equal on every rank. int64 [N] each."""

    rank_N: Tensor
    """Of the right class; 1 = first."""
    predicted_N: Tensor
    """The class that came first."""
    label_N: Tensor


def answers(image_Nd: Tensor, class_Cd: Tensor, label_N: Tensor, world: World) -> Answers:
    """Classify every image; each rank takes its share.

    Args:
        image_Nd: unit embeddings of all images, the same on every rank.
        class_Cd: from ``classifier``.
        label_N: int64 class indices.
        world: who shares the work.

    Raises:
        DataError: a label outside ``[0, C)``. All labels are checked on every rank, so that all ranks raise together.
    """
    wrong_N = (label_N < 0) | (label_N >= len(class_Cd))
    if bool(wrong_N.any()):
        raise DataError(
            f"sample {int(wrong_N.nonzero()[0])} has label {int(label_N[wrong_N][0])}, but the class names go from "
            f"0 to {len(class_Cd) - 1}"
        )
    mine = my_rows(len(image_Nd), world)
    rank_n, predicted_n = _judged(to_grid(image_Nd)[mine], class_Cd, label_N[mine])
    return Answers(dist.all_gather_rows(rank_n), dist.all_gather_rows(predicted_n), label_N)


def _judged(image_Nd: Tensor, class_Cd: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of each image's own class among all classes, and the first one; both inputs from ``to_grid``."""
    rank_N = torch.empty(len(image_Nd), dtype=torch.int64, device=image_Nd.device)
    predicted_N = torch.empty_like(rank_N)
    index_C = torch.arange(len(class_Cd), device=image_Nd.device)
    for rows, score_NC in score_rows(image_Nd, class_Cd):
        label_N1 = label_N[rows, None]
        own_N1 = score_NC.gather(1, label_N1)
        ahead_NC = (score_NC > own_N1) | ((score_NC == own_N1) & (index_C < label_N1))
        rank_N[rows] = 1 + ahead_NC.sum(dim=1)
        predicted_N[rows] = score_NC.argmax(dim=1)
    return rank_N, predicted_N


def summary(found: Answers, num_classes: int) -> dict[str, Any]:
    """Counts, rates and intervals over all images; per class ``[images, first, among five]``; the commonest confusions.

    The mean per class weighs every class that occurs alike, whatever its number of images.
    """
    n = len(found.label_N)
    hits = {k: (found.rank_N <= k) for k in CUTOFFS}
    counted_C = torch.bincount(found.label_N, minlength=num_classes)
    right = {k: torch.bincount(found.label_N[hit_N], minlength=num_classes) for k, hit_N in hits.items()}
    rate_C = right[1].double() / counted_C.clamp_min(1)
    return {
        "n": n,
        **{f"correct@{k}": int(hit_N.sum()) for k, hit_N in hits.items()},
        **{f"accuracy@{k}": int(hit_N.sum()) / n for k, hit_N in hits.items()},
        "interval@1": interval(hits[1].cpu().numpy()),
        "mean_per_class@1": float(rate_C[counted_C > 0].mean()),
        "per_class": torch.stack([counted_C, right[1], right[5]], dim=1).tolist(),
        "confusions": _confusions(found, num_classes),
    }


def _confusions(found: Answers, num_classes: int) -> list[list[int]]:
    """The most frequent mistakes: ``[class, taken for, how often]``, at most ``MAX_CONFUSIONS``."""
    wrong_N = found.predicted_N != found.label_N
    pair_N = found.label_N[wrong_N] * num_classes + found.predicted_N[wrong_N]
    pairs, counts = torch.unique(pair_N, return_counts=True)
    order = sorted(zip(counts.tolist(), pairs.tolist(), strict=True), key=lambda item: (-item[0], item[1]))
    return [[pair // num_classes, pair % num_classes, count] for count, pair in order[:MAX_CONFUSIONS]]
