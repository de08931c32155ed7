"""Who is whose negative, and sums over masked entries that stay defined, in value and gradient, when nothing is left.

Masks are bool, True = counts. Two samples are negatives of each other exactly when their groups differ; a sample and itself
share a group, so the same mask also leaves out the diagonal.

Shapes: B batch, R rows (anchors), C columns (candidates).

Example:
    >>> apart(torch.tensor([5, 5, 7]))
    tensor([[False, False,  True],
            [False, False,  True],
            [ True,  True, False]])
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def apart(group_B: Tensor) -> Tensor:
    """Bool [B, B]: whether samples i and j show different things, from int64 group ids [B]."""
    return group_B[:, None] != group_B[None, :]


def identity(group_B: Tensor) -> Tensor:
    """Bool [B, B]: whether i and j are the same sample."""
    return torch.eye(len(group_B), dtype=torch.bool, device=group_B.device)


def masked_logsumexp(logits_RC: Tensor, mask_RC: Tensor) -> Tensor:
    """Per row ``log sum_{masked in} e^l`` [R]; -inf with zero gradient for a row that counts nothing."""
    # Of -inf alone logsumexp has the gradient 0/0, but the fill lets none of it through.
    return logits_RC.masked_fill(~mask_RC, -torch.inf).logsumexp(dim=1)


def log_mean_exp(values_RC: Tensor, mask_RC: Tensor) -> Tensor:
    """0-dim ``log mean_{masked in} e^v``; 0 with zero gradient where nothing counts."""
    if not mask_RC.any():
        return 0 * values_RC.sum()
    return values_RC[mask_RC].logsumexp(dim=0) - math.log(int(mask_RC.sum()))


def contrast(positive_R: Tensor, logits_RC: Tensor, negative_RC: Tensor) -> Tensor:
    """Per anchor ``-log( e^p / (e^p + sum_{negatives} e^l) )`` = ``softplus(n - p)`` with n their logsumexp; [R], >= 0.

    0 with zero gradient for an anchor without negatives.
    """
    return -F.logsigmoid(positive_R - masked_logsumexp(logits_RC, negative_RC))
