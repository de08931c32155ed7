"""The losses a contrastive pretraining starts from: CLIP's InfoNCE, SigLIP's pairwise sigmoid, CoCa's captioning.

Shapes: B global batch, d embedding width, L tokens of a caption, C vocabulary size.

Example:
    >>> image_Bd, text_Bd = torch.eye(2), torch.eye(2).flip(0)   # every pair mismatched
    >>> round(info_nce(image_Bd, text_Bd, torch.tensor(1.0), torch.arange(2)).item(), 4)    # log(1 + e)
    1.3133
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.losses.reference.masks import apart, identity


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


def siglip(image_Bd: Tensor, text_Bd: Tensor, scale: Tensor, bias: Tensor, group_B: Tensor) -> Tensor:
    """Pairwise sigmoid loss of SigLIP (Zhai et al. 2023, algorithm 1): each pair alone is classified match or not.

    ``-(1/B) sum_ij log sigmoid( y_ij (scale <image_i, text_j> + bias) )``, y = 1 for i = j and -1 for samples of different
    groups. The sum is divided by B, not by B^2. Samples of one group that are not the same sample are left out, as in every
    other term here (the paper does not treat them; y = 1 for them would be the other choice).

    Args:
        image_Bd, text_Bd: unit rows [B, d]; row i of both is pair i.
        scale: 0-dim, e^t' of the paper (starts at 10 there).
        bias: 0-dim (starts at -10 there).
        group_B: int64 [B].

    Returns:
        0-dim loss, > 0. Without negatives the B positive terms remain; they only attract.
    """
    logits_BB = scale * image_Bd @ text_Bd.T + bias
    pair_BB = identity(group_B)
    loss_BB = -F.logsigmoid(torch.where(pair_BB, logits_BB, -logits_BB))
    return loss_BB.masked_fill(~(pair_BB | apart(group_B)), 0).sum() / len(group_B)


def captioning(logits_BLC: Tensor, target_BL: Tensor, pad_id: int) -> Tensor:
    """Captioning loss of CoCa (Yu et al. 2022, equation 3): mean next-token cross-entropy, padding apart.

    ``-(1/n) sum_{b,l : target_bl != pad} log softmax(logits_bl)[target_bl]``, n the number of such tokens in the whole batch:
    a long caption counts more than a short one. The mean over tokens (not over captions of their means) is what open_clip does.

    Args:
        logits_BLC: position l scores the token ``target_BL[:, l]``; the shift by one is the caller's.
        target_BL: int64 [B, L], padding included.
        pad_id: id of the padding token.

    Returns:
        0-dim loss, >= 0; log C for uniform logits; 0 for a batch of padding alone.
    """
    token_BL = target_BL != pad_id
    log_p_BLC = logits_BLC.log_softmax(dim=2)
    # A pad id may lie outside the vocabulary (-100): look up 0 there, its value is masked.
    log_p_BL = log_p_BLC.gather(2, target_BL.masked_fill(~token_BL, 0)[:, :, None]).squeeze(2)
    return -log_p_BL.masked_fill(~token_BL, 0).sum() / token_BL.sum().clamp_min(1)
