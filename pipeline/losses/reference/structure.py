"""Latent structures: in-modal contrast, deep feature separation, the Brownian bridge, geometric consistency.

The paper: Jiang et al., "Understanding and Constructing Latent Modality Structures in Multi-Modal Representation Learning",
CVPR 2023 (arXiv 2303.05952). Its claim is that exact alignment of the modalities costs downstream; its regularisers shape the
space instead, and are tried one at a time. Their weights are not in the paper's main text. By the names it gives them,

    L_Con = ( info_nce(image, text) + ( in_modal(image) + in_modal(text) ) / 2 ) / 2      the base
    L_Sep = orthogonality + independent_contrast + independent_uniformity                 deep feature separation
    L_Br  = brownian_bridge
    L_GC  = geometric_consistency + augmented_consistency

Shapes: B global batch, d embedding width. Augmented rows (another view, another caption) belong to the same samples in the
same order. "Independent" rows come from an extra head beside the projection.

Example:
    >>> image_Bd = torch.eye(2)
    >>> text_Bd = torch.tensor([[1.0, 0.0], [0.6, 0.8]])                    # one cosine within: images 0.0, texts 0.6
    >>> intra_consistency(image_Bd, text_Bd, reference_batch=2)            # (0.6^2 + 0.6^2) / 2
    tensor(0.3600)
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.losses.reference.masks import apart, contrast, log_mean_exp

REFERENCE_BATCH = 128
"""The global batch at which CyCLIP's weight 0.25, the only published anchor for geometric consistency, was used."""

_SHORTEST_MEAN = 1e-6
"""Below this length the point between two opposite embeddings has no direction."""


def in_modal_info_nce(x_Bd: Tensor, augmented_Bd: Tensor, scale: Tensor, group_B: Tensor) -> Tensor:
    """L_V2V or L_T2T of the base loss: find one's own augmented view among everybody's; one direction.

    ``-mean_i log( e^{l_ii} / (e^{l_ii} + sum_{j : group_j != group_i} e^{l_ij}) )``, ``l_ij = scale <x_i, augmented_j>``.
    The printed denominator sums over *un-augmented* keys and would hold the anchor itself; augmented keys, as in CyCLIP's
    code on which the authors built, are taken for the meaning.

    Args:
        x_Bd, augmented_Bd: unit rows [B, d].
        scale: 0-dim, 1 / temperature, shared with the cross-modal term in the paper.
        group_B: int64 [B].

    Returns:
        0-dim loss, >= 0; 0 where nobody has a negative.
    """
    logits_BB = scale * x_Bd @ augmented_Bd.T
    return contrast(logits_BB.diagonal(), logits_BB, apart(group_B)).mean()


def orthogonality(image_Bd: Tensor, image_independent_Bd: Tensor, text_Bd: Tensor, text_independent_Bd: Tensor) -> Tensor:
    """L_Ortho of deep feature separation: ``mean_i ( <image_i, image_independent_i>^2 + <text_i, text_independent_i>^2 )``.

    Keeps what is special to a modality out of the shared embedding. Unit rows [B, d]; gradients reach all four (the paper
    detaches none). 0-dim in [0, 2]; about 2/d for random rows, so it starts tiny.
    """
    image_B = (image_Bd * image_independent_Bd).sum(dim=1).square()
    text_B = (text_Bd * text_independent_Bd).sum(dim=1).square()
    return (image_B + text_B).mean()


def independent_contrast(
    image_Bd: Tensor,
    image_augmented_Bd: Tensor,
    text_Bd: Tensor | None,
    text_augmented_Bd: Tensor | None,
    scale: Tensor,
    group_B: Tensor,
) -> Tensor:
    """L_Con^i of deep feature separation: the sum of ``in_modal_info_nce`` of both modalities, on the independent features.

    As printed the numerator holds the feature against itself, a constant; a lost superscript "augmented" is assumed. Pass None
    for both texts where captions are not augmented: the text half is then left out. 0-dim, >= 0.
    """
    loss = in_modal_info_nce(image_Bd, image_augmented_Bd, scale, group_B)
    if text_Bd is None or text_augmented_Bd is None:
        return loss
    return loss + in_modal_info_nce(text_Bd, text_augmented_Bd, scale, group_B)


def independent_uniformity(image_Bd: Tensor, text_Bd: Tensor, group_B: Tensor, t: float = 2.0) -> Tensor:
    """L_Uni^i of deep feature separation: one log of the mean of both modalities' kernels, on the independent features.

    ``log mean_{i,j : group_i != group_j} ( G(image_i, image_j) + G(text_i, text_j) ) / 2``, ``G = exp(-t ||x - y||^2)``.
    The paper sums over all pairs with the prefactor 1/N; as in ``gap.uniformity`` a sample and itself, and pairs of one
    group, are left out, and the mean changes the value by a constant only. Unit rows [B, d]; 0-dim in [-4t, 0], 0 collapsed
    and where no two samples differ in group.
    """
    cos_2BB = torch.stack([image_Bd @ image_Bd.T, text_Bd @ text_Bd.T])
    return log_mean_exp(2 * t * (cos_2BB - 1), apart(group_B).expand(2, -1, -1))


def brownian_bridge(image_Bd: Tensor, text_Bd: Tensor, image_augmented_Bd: Tensor, t: float = 0.25) -> Tensor:
    """L_Br, the Brownian bridge: the augmented image should lie on the way from the image to its text.

    ``mean_i ||image_augmented_i - mu_i||^2``, ``mu = (t image + (1-t) text) / ||t image + (1-t) text||``. With the paper's
    t = 0.25 the point lies three quarters of the way *towards the text*. The variance t(1-t) is a constant factor and left out,
    as there; the paper's expanded second line lacks a root and a factor 2 and is not used. Gradients reach all three.
    Only positives occur, so groups play no part.

    Args:
        image_Bd, text_Bd, image_augmented_Bd: unit rows [B, d].
        t: in [0, 1], the share of the image.

    Returns:
        0-dim in [0, 4]. Where image and text are opposite and t = 1/2 there is no point between: mu is 0 there, without
        gradient, and the pair's loss is 1.

    Raises:
        ValueError: t outside [0, 1].
    """
    if not 0 <= t <= 1:
        raise ValueError(f"the bridge's t is {t}, but it is a share of the way from text (0) to image (1): choose it in [0, 1]")
    between_Bd = t * image_Bd + (1 - t) * text_Bd
    vanishing_B1 = between_Bd.square().sum(dim=1, keepdim=True) < _SHORTEST_MEAN**2
    # Masked before the norm, whose gradient at 0 is not defined, and after it.
    length_B1 = between_Bd.masked_fill(vanishing_B1, 1).square().sum(dim=1, keepdim=True).sqrt()
    mu_Bd = (between_Bd / length_B1).masked_fill(vanishing_B1, 0)
    return (image_augmented_Bd - mu_Bd).square().sum(dim=1).mean()


def cross_consistency(image_Bd: Tensor, text_Bd: Tensor, reference_batch: float = REFERENCE_BATCH) -> Tensor:
    """Cross-modal half of L_GC: ``reference_batch * mean_{j,k} (<image_j, text_k> - <image_k, text_j>)^2``.

    As printed the double sum is divided by N once, so strength grows with the batch. Here it is a mean over all B^2 ordered
    pairs, times a fixed 128: the published formula at batch 128, and as strong at every other batch, so that weights carry
    over. ``reference_batch=B`` gives the printed formula. It has no negatives, and a duplicate is consistent with its twin, so
    groups play no part. Unit rows [B, d]; 0-dim >= 0; about 128 * 2/d for random rows; 0 for a batch of one; unchanged when
    the modalities are swapped.
    """
    cos_BB = image_Bd @ text_Bd.T
    return reference_batch * (cos_BB - cos_BB.T).square().mean()


def intra_consistency(first_Bd: Tensor, second_Bd: Tensor, reference_batch: float = REFERENCE_BATCH) -> Tensor:
    """In-modal half of L_GC: ``reference_batch * mean_{j,k} (<first_j, first_k> - <second_j, second_k>)^2``.

    Two sets of embeddings of the same samples (two modalities, or a modality and its augmentation) should have the same inner
    geometry. Shapes, normalisation and limits as in ``cross_consistency``.
    """
    return reference_batch * (first_Bd @ first_Bd.T - second_Bd @ second_Bd.T).square().mean()


def cross_consistency_gram(image_Bd: Tensor, text_Bd: Tensor, reference_batch: float = REFERENCE_BATCH) -> Tensor:
    """``cross_consistency`` through d x d matrices: equal, at a cost linear in B, from sums over samples alone.

    ``sum_jk (..)^2 = 2 <G, H> - 2 tr(C C)`` with ``G = image^T image``, ``H = text^T text``, ``C = image^T text``.
    """
    image_dd, text_dd, cross_dd = image_Bd.T @ image_Bd, text_Bd.T @ text_Bd, image_Bd.T @ text_Bd
    total = 2 * (image_dd * text_dd).sum() - 2 * (cross_dd * cross_dd.T).sum()
    return reference_batch * total / len(image_Bd) ** 2


def intra_consistency_gram(first_Bd: Tensor, second_Bd: Tensor, reference_batch: float = REFERENCE_BATCH) -> Tensor:
    """``intra_consistency`` through d x d matrices: ``sum_jk (..)^2 = ||G||^2 + ||H||^2 - 2 ||C||^2``, names as above.

    The difference of large numbers: at a small loss take the final sums in float64.
    """
    first_dd, second_dd, cross_dd = first_Bd.T @ first_Bd, second_Bd.T @ second_Bd, first_Bd.T @ second_Bd
    total = first_dd.square().sum() + second_dd.square().sum() - 2 * cross_dd.square().sum()
    return reference_batch * total / len(first_Bd) ** 2


def geometric_consistency(image_Bd: Tensor, text_Bd: Tensor, reference_batch: float = REFERENCE_BATCH) -> Tensor:
    """L_GC, geometric consistency: ``cross_consistency`` + ``intra_consistency``; CyCLIP's two terms, weighted 1:1."""
    return cross_consistency(image_Bd, text_Bd, reference_batch) + intra_consistency(image_Bd, text_Bd, reference_batch)


def augmented_consistency(
    image_Bd: Tensor,
    image_augmented_Bd: Tensor,
    text_Bd: Tensor | None = None,
    text_augmented_Bd: Tensor | None = None,
    reference_batch: float = REFERENCE_BATCH,
) -> Tensor:
    """L_GC^a: augmentation keeps the geometry within each modality, and each pair's cosine.

    ``intra(image, image_augmented) + intra(text, text_augmented) + mean_j (<image_j, text_j> - <image^a_j, text^a_j>)^2``.
    The last sum runs over pairs of one index; its 1/N is a mean already and needs no rescaling. Without augmented captions
    (None) the text and pair parts are left out. Unit rows [B, d]; 0-dim >= 0.
    """
    loss = intra_consistency(image_Bd, image_augmented_Bd, reference_batch)
    if text_Bd is None or text_augmented_Bd is None:
        return loss
    loss = loss + intra_consistency(text_Bd, text_augmented_Bd, reference_batch)
    change_B = (image_Bd * text_Bd).sum(dim=1) - (image_augmented_Bd * text_augmented_Bd).sum(dim=1)
    return loss + change_B.square().mean()
