"""THE SPECIFICATION of every loss: the obvious formula, on the whole batch, in one process, in any dtype.

Nothing here is fast, distributed, or clever; it is what the training path is tested against, in value and in gradient.
Shapes: B global batch, d embedding width. Embeddings are rows of unit length, so a dot product is a cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(image_Bd: Tensor, text_Bd: Tensor, scale: Tensor, group_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Symmetric InfoNCE of CLIP (Radford et al. 2021, figure 3), mean over both directions and all B pairs.

    With ``l_ij = scale * <image_i, text_j>``, an image's loss is ``-log( e^{l_ii} / (e^{l_ii} + sum_{j in N_i} e^{l_ij}) )``
    with negatives ``N_i = { j : group_j != group_i }``, and a text's is the same on the transposed matrix. Other samples of
    the anchor's group are neither positives nor negatives. Label smoothing ``e`` moves a share ``e`` of the target evenly onto
    the anchor's ``1 + |N_i|`` candidates (its pair included), as in cross-entropy.

    Args:
        image_Bd, text_Bd: unit rows [B, d]; row i of both is pair i.
        scale: 0-dim, 1 / temperature.
        group_B: int64 [B].

    Returns:
        0-dim loss, >= 0 without smoothing. A batch in which nobody has a negative has loss 0.
    """
    logits_BB = scale * image_Bd @ text_Bd.T
    pair_BB = torch.eye(len(image_Bd), dtype=torch.bool, device=image_Bd.device)
    candidate_BB = (group_B[:, None] != group_B[None, :]) | pair_BB
    loss = torch.zeros((), dtype=logits_BB.dtype, device=logits_BB.device)
    for direction_BB in (logits_BB, logits_BB.T):
        log_p_BB = direction_BB.masked_fill(~candidate_BB, -torch.inf).log_softmax(dim=1)
        uniform_B = log_p_BB.masked_fill(~candidate_BB, 0).sum(dim=1) / candidate_BB.sum(dim=1)
        loss = loss - ((1 - label_smoothing) * log_p_BB.diagonal() + label_smoothing * uniform_B).mean() / 2
    return loss
