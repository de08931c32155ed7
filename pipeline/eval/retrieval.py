"""Recall@K between images and captions, both ways, with any number of captions per image.

Text to image: a caption is a hit at K if its image is among the K best of all images. Image to text: an image is a
hit at K if any of its captions is among the K best of all captions. One rule serves both: query and candidate belong
together when they carry the same owner (the image's index), and

    rank = 1 + number of candidates of other owners that score at least as high as the best own candidate

so ties count against the model, and a model that maps everything to one point has recall 0, not 1.

    recalls(image_Nd, text_Md, owner_M, world)
    # {"text_to_image": {"n": 5, "correct@1": 3, "recall@1": 0.6, ...}, "image_to_text": {...}}

Shapes: N images, M captions, Q queries, G candidates, d = embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline import dist
from pipeline.dist import World
from pipeline.errors import DataError
from pipeline.eval.intervals import interval
from pipeline.eval.scores import my_rows, score_rows, to_grid

CUTOFFS = (1, 5, 10)


def owner_ranks(query_Qd: Tensor, query_owner_Q: Tensor, gallery_Gd: Tensor, gallery_owner_G: Tensor) -> Tensor:
    """The rank of each query's best own candidate (it has one), int64 [Q]; 1 = first. Embeddings from ``to_grid``."""
    rank_Q = torch.empty(len(query_Qd), dtype=torch.int64, device=query_Qd.device)
    for rows, score_QG in score_rows(query_Qd, gallery_Gd):
        own_QG = query_owner_Q[rows, None] == gallery_owner_G[None, :]
        best_Q1 = score_QG.masked_fill(~own_QG, -torch.inf).amax(dim=1, keepdim=True)
        rank_Q[rows] = 1 + ((score_QG >= best_Q1) & ~own_QG).sum(dim=1)
    return rank_Q


def recalls(image_Nd: Tensor, text_Md: Tensor, owner_M: Tensor, world: World, unseen_N: Tensor | None = None) -> dict[str, Any]:
    """Recall@1/5/10 both ways, with the counts they come from.

    Args:
        image_Nd: unit embeddings of all images, the same on every rank.
        text_Md: unit embeddings of all captions.
        owner_M: int64, the image that each caption describes.
        world: each rank scores its share of the queries.
        unseen_N: bool, images of concepts that training never saw. If given, the same numbers over these queries alone
            (against the full gallery) are added under ``"unseen"``.

    Raises:
        DataError: an image without a caption. Every rank checks all of them, so that all ranks raise together.
    """
    image_Nd, text_Md = to_grid(image_Nd), to_grid(text_Md)
    owner_N = torch.arange(len(image_Nd), device=image_Nd.device)
    lonely_N = ~torch.isin(owner_N, owner_M)
    if bool(lonely_N.any()):
        raise DataError(
            f"{int(lonely_N.sum())} of {len(owner_N)} samples have no caption, the first is sample "
            f"{int(lonely_N.nonzero()[0])}; retrieval needs at least one for every image"
        )
    directions = {
        "text_to_image": (text_Md, owner_M, image_Nd, owner_N),
        "image_to_text": (image_Nd, owner_N, text_Md, owner_M),
    }
    result: dict[str, Any] = {}
    for direction, (query_Qd, query_owner_Q, gallery_Gd, gallery_owner_G) in directions.items():
        mine = my_rows(len(query_Qd), world)
        rank_Q = dist.all_gather_rows(owner_ranks(query_Qd[mine], query_owner_Q[mine], gallery_Gd, gallery_owner_G))
        result[direction] = _summary(rank_Q, query_owner_Q)
        if unseen_N is not None:
            chosen_Q = unseen_N[query_owner_Q]
            result.setdefault("unseen", {})[direction] = _summary(rank_Q[chosen_Q], query_owner_Q[chosen_Q])
    return result


def _summary(rank_Q: Tensor, owner_Q: Tensor) -> dict[str, Any]:
    """Counts, rates, median rank, and the interval of recall at 1; the queries of one owner are drawn together."""
    n = len(rank_Q)
    hits = {k: int((rank_Q <= k).sum()) for k in CUTOFFS}
    found: dict[str, Any] = {"n": n, **{f"correct@{k}": count for k, count in hits.items()}}
    found |= {f"recall@{k}": count / n if n else None for k, count in hits.items()}
    if n:
        _, place_Q = torch.unique(owner_Q, return_inverse=True)
        first = torch.bincount(place_Q, weights=(rank_Q <= 1).double())
        found["median_rank"] = float(rank_Q.double().median())
        found["interval@1"] = interval(first.cpu().numpy(), torch.bincount(place_Q).cpu().numpy())
    return found
