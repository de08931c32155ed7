"""InfoNCE over negatives gathered from every rank: equals ``reference.info_nce`` in value and gradient at any world size.

Each rank scores its b image rows against all B texts and its b text rows against all B images, so memory is O(b B) and no
rank repeats another's work. How the gradient of the columns finds its way home is explained in ``gather.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.features import Features
from pipeline.losses.gather import gather_ids, gather_rows, row_offset


def info_nce(features: Features, label_smoothing: float = 0.0) -> Tensor:
    """This rank's share of the loss: the mean over its own rows, both directions. The mean over ranks is the global loss.

    Computed in the features' dtype (fp32 in training), whatever precision the towers ran in.
    """
    image_Bd, text_Bd = gather_rows(features.image_bd), gather_rows(features.text_bd)
    group_B = gather_ids(features.group_b)
    b = len(features.group_b)
    own_b = torch.arange(b, device=group_B.device) + row_offset(b)
    excluded_bB = features.group_b[:, None] == group_B[None, :]
    excluded_bB[torch.arange(b, device=group_B.device), own_b] = False

    def direction(anchor_bd: Tensor, key_Bd: Tensor) -> Tensor:
        logits_bB = (features.scale * anchor_bd @ key_Bd.T).masked_fill(excluded_bB, -torch.inf)
        log_p_bB = logits_bB.log_softmax(dim=1)
        loss_b = -log_p_bB.gather(1, own_b[:, None]).squeeze(1)
        if label_smoothing:
            uniform_b = log_p_bB.masked_fill(excluded_bB, 0).sum(dim=1) / (~excluded_bB).sum(dim=1)
            loss_b = (1 - label_smoothing) * loss_b - label_smoothing * uniform_b
        return loss_b.mean()

    return (direction(features.image_bd, text_Bd) + direction(features.text_bd, image_Bd)) / 2
