"""Geodesic mixup: contrast against, or of, points on the arc between two embeddings.

The paper: Oh et al., "Geodesic Multi-Modal Mixup for Robust Fine-Tuning", NeurIPS 2023 (arXiv 2203.03897), as in its released
code. m2-Mix makes hard negatives between the modalities; V-, L- and VL-Mix mix within them. The authors' full loss adds them,
small weights each, to the CLIP loss. There lambda is one number per term and step and the partner is the batch reversed; here
both are arguments per sample, ``lam_B`` in [0, 1] and the permutation ``partner_B``, of which that is a special case.
Randomness stays outside: ``draw_lambda`` and ``random_derangement`` are the only draws, and pure functions of a generator.
Training draws partners within ``derangement_block`` consecutive samples of the (shuffled) batch.

What per-sample lambdas, permutations and groups leave open, and what is done:

- Targets of the text rows are the transposed targets of the image rows: a mixed image divides itself between its two texts,
  seen from either side. For a shared lambda and a reversed batch this is the released code.
- A partner of the sample's own group (or the sample itself, in a batch of one) shows nothing else to divide between: the
  sample's target is then 1 at its own pair and the partner's column is masked like that of any other twin.
- A mixed point belongs to the groups of both ends; it is nobody's negative in either of them.

Shapes: B global batch, d embedding width.

Example:
    >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
    tensor([[0.7071, 0.7071]])
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.losses.reference.masks import apart, contrast, identity

_COS_MIN, _COS_MAX = -0.999, 1 - 1e-6
"""Angles are taken within these: 1/sin stays below 23, and the infinite slope of acos at 1 is never met."""


def slerp_weights(cos: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients of ``slerp``: ``sin(lam theta) / sin(theta)`` and ``sin((1-lam) theta) / sin(theta)``.

    theta = acos(cos), in float32 at least, with cos clamped to [-0.999, 1 - 1e-6]; beyond, the gradient with respect to cos
    is 0. Coincident points have the weights lam and 1 - lam (to 3e-7), opposite points finite ones (below 23). Both arguments
    have the same shape, any.
    """
    theta = cos.to(torch.promote_types(cos.dtype, torch.float32)).clamp(_COS_MIN, _COS_MAX).acos()
    lam = lam.to(theta.dtype)
    return (lam * theta).sin() / theta.sin(), ((1 - lam) * theta).sin() / theta.sin()


def slerp(x: Tensor, y: Tensor, lam: Tensor) -> Tensor:
    """The point ``sin(lam theta)/sin(theta) x + sin((1-lam) theta)/sin(theta) y`` on the arc; lam = 1 is x, 0 is y.

    Gradients flow to both ends. Between parallel or identical vectors it is that vector (times 1 + 2.5e-7 at most). Opposite
    vectors have no arc between them: within 2.6 degrees of opposite the result shrinks continuously and linearly, to
    ``(w_x - w_y) x`` at y = -x, which is x, 0, -x at lam = 1, 1/2, 0. It is not renormalised: that would be 0/0 there, and
    changes nothing elsewhere.

    Args:
        x, y: unit rows [..., d].
        lam: weight of x [...], in [0, 1].

    Returns:
        [..., d] in x's dtype, of length 1 but for the limits above. Finite in value and gradient everywhere.
    """
    weight_x, weight_y = slerp_weights((x * y).sum(dim=-1), lam)
    return (weight_x[..., None] * x + weight_y[..., None] * y).to(x.dtype)


def m2_mix(image_Bd: Tensor, text_Bd: Tensor, lam_B: Tensor, scale: Tensor, group_B: Tensor) -> Tensor:
    """m2-Mix: each clean pair against the image-text mixtures of other samples, as hard negatives.

    With ``m_j = slerp(image_j, text_j, lam_j)``, an image's loss is
    ``-log( e^{s <image_i, text_i>} / (e^{s <image_i, text_i>} + sum_{j : group_j != group_i} e^{s <image_i, m_j>}) )``
    and a text's the same with ``<text_i, m_j>``. Mixtures occur only as negatives, plain negatives do not occur.

    Args:
        image_Bd, text_Bd: unit rows [B, d].
        lam_B: weight of the image [B].
        scale: 0-dim, 1 / temperature; the code uses a temperature of its own here, 0.07.
        group_B: int64 [B].

    Returns:
        0-dim, the *sum* of the directions' means (as in the code, not halved), >= 0; 0 where nobody has a negative.
    """
    mixed_Bd = slerp(image_Bd, text_Bd, lam_B)
    positive_B = scale * (image_Bd * text_Bd).sum(dim=1)
    image_B, text_B = (
        contrast(positive_B, scale * anchor_Bd @ mixed_Bd.T, apart(group_B)) for anchor_Bd in (image_Bd, text_Bd)
    )
    return image_B.mean() + text_B.mean()


def v_mix(image_Bd: Tensor, text_Bd: Tensor, lam_B: Tensor, partner_B: Tensor, scale: Tensor, group_B: Tensor) -> Tensor:
    """V-Mix: mixed images against clean texts, with the mixture's shares as targets.

    ``l_ij = scale <slerp(image_i, image_{partner_i}, lam_i), text_j>``, targets lam_i at j = i and 1 - lam_i at j = partner_i;
    the mean of both directions of the cross-entropy ``-sum_j target_ij log softmax(l_i)_j``, text rows with transposed targets.

    Args:
        image_Bd, text_Bd: unit rows [B, d].
        lam_B: weight of the sample itself [B].
        partner_B: int64 [B], a permutation of the samples.
        scale: 0-dim, 1 / temperature, the CLIP loss's own.
        group_B: int64 [B]; for row i, texts of the groups of i and of its partner are candidates only as targets.

    Returns:
        0-dim loss, at least the targets' entropy and so > 0 for inner lambdas; 0 where there is only one group.
    """
    other_B, partner_BB = _partners(partner_B, group_B)
    share_B = torch.where(other_B, lam_B.to(image_Bd.dtype), 1)[:, None]
    target_BB = share_B * identity(group_B) + (1 - share_B) * partner_BB
    negative_BB = apart(group_B) & apart(group_B)[partner_B]
    logits_BB = scale * slerp(image_Bd, image_Bd[partner_B], lam_B) @ text_Bd.T
    return _soft_cross_entropy(logits_BB, target_BB, negative_BB | identity(group_B) | partner_BB)


def l_mix(image_Bd: Tensor, text_Bd: Tensor, lam_B: Tensor, partner_B: Tensor, scale: Tensor, group_B: Tensor) -> Tensor:
    """L-Mix: clean images against mixed texts. ``v_mix`` with the modalities exchanged, and equal to it."""
    return v_mix(text_Bd, image_Bd, lam_B, partner_B, scale, group_B)


def vl_mix(image_Bd: Tensor, text_Bd: Tensor, lam_B: Tensor, partner_B: Tensor, scale: Tensor, group_B: Tensor) -> Tensor:
    """VL-Mix: mixed images against mixed texts, both mixed with the same lambda and partner.

    ``l_ij = scale <slerp(image_i, image_{partner_i}, lam_i), slerp(text_j, text_{partner_j}, lam_j)>`` with targets 1 at j = i
    *and* 1 at j = partner_i, which sum to 2, as in the code; the mean of both directions as in ``v_mix``. In a reversed batch i
    and partner_i are mixtures of the same two samples. For other permutations further mixtures share a sample with i (that of
    which i is the partner); they are masked.

    Arguments as in ``v_mix``. Returns a 0-dim loss, >= 2 log 2 where every partner shows something else; 0 where there is only
    one group.
    """
    _, partner_BB = _partners(partner_B, group_B)
    positive_BB = identity(group_B) | partner_BB
    apart_BB = apart(group_B)
    disjoint_BB = apart_BB & apart_BB[partner_B] & apart_BB[:, partner_B] & apart_BB[partner_B][:, partner_B]
    mixed_image_Bd = slerp(image_Bd, image_Bd[partner_B], lam_B)
    mixed_text_Bd = slerp(text_Bd, text_Bd[partner_B], lam_B)
    logits_BB = scale * mixed_image_Bd @ mixed_text_Bd.T
    return _soft_cross_entropy(logits_BB, positive_BB.to(logits_BB.dtype), disjoint_BB | positive_BB)


def _partners(partner_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a sample's partner shows something else [B], and the partner's place in its row where it does [B, B]."""
    other_B = group_B != group_B[partner_B]
    place_BB = partner_B[:, None] == torch.arange(len(partner_B), device=partner_B.device)[None, :]
    return other_B, place_BB & other_B[:, None]


def _soft_cross_entropy(logits_BB: Tensor, target_BB: Tensor, candidate_BB: Tensor) -> Tensor:
    """Mean over rows and both directions of ``-sum_j target_ij log softmax(l_i)_j``; the softmax runs over candidates only."""
    loss = torch.zeros((), dtype=logits_BB.dtype, device=logits_BB.device)
    for rows_BB, share_BB, mask_BB in (
        (logits_BB, target_BB, candidate_BB),
        (logits_BB.T, target_BB.T, candidate_BB.T),
    ):
        log_p_BB = rows_BB.masked_fill(~mask_BB, -torch.inf).log_softmax(dim=1).masked_fill(~mask_BB, 0)
        loss = loss - (share_BB * log_p_BB).sum(dim=1).mean() / 2
    return loss


def draw_lambda(generator: np.random.Generator, alpha: float, count: int, per_sample: bool = False) -> Tensor:
    """``count`` weights from Beta(alpha, alpha), float64 [count]: one shared draw per call, as in the paper, or one per sample.

    The released scripts use alpha 0.5 for V-, L- and VL-Mix and 0.2 or 0.5 for m2-Mix: most draws lie near 0 or 1. A shared
    lambda must be drawn alike on all ranks, from a generator seeded by (seed, step, term). Raises numpy's ValueError for
    alpha <= 0.
    """
    return torch.from_numpy(generator.beta(alpha, alpha, size=count if per_sample else 1)).expand(count).clone()


def random_derangement(generator: np.random.Generator, count: int, block: int | None = None) -> Tensor:
    """A uniformly random permutation without fixed points, int64 [count]: everybody's partner is another sample.

    Permutations are drawn until one has none; the chance is 1/e, whatever the count. One sample alone is its own partner.
    With ``block``, which divides count, each run of that many consecutive samples is permuted by itself: partners stay
    together when a shuffled batch is shared over ranks.
    """
    block = block or count
    own = np.arange(block)
    partner = np.tile(own, (count // block, 1))
    while block > 1 and (again := (partner == own).any(axis=1)).any():
        partner[again] = generator.permuted(partner[again], axis=1)
    return torch.from_numpy((partner + np.arange(0, count, block)[:, None]).reshape(count))


def derangement_block(count: int) -> int:
    """The blocks in which a batch of ``count`` is permuted: of 64 samples, or the largest lesser power of two that divides it.

    An odd batch has no blocks and is permuted as a whole. The answer depends on the batch alone, so that one step has the same
    partners on any number of ranks.
    """
    block = math.gcd(count, 64)
    return block if block > 1 else count
