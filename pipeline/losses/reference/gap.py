"""Terms that close the modality gap: alignment, uniformity, cross-modal uniformity.

The paper: Fahim, Murphy, Fyshe 2024, "It's Not a Modality Gap" (arXiv 2405.18570), whose fine-tuning losses are, all weights 1,

    L_CUA   = L_CLIP + (uniformity(image) + uniformity(text)) / 2 + alignment(image, text)
    L_CUAXU = L_CUA + cross_uniformity(image, text)

The terms themselves are Wang and Isola's (2020). Between unit rows ``||x - y||^2 = 2 - 2 cos``, so a uniformity term is a
log-mean-exp of cosines at inverse temperature 2t: a very hot contrastive term (t = 2: temperature 1/4). The gram form is used
and not a distance, whose root has the gradient 0/0 at coincident points.

Two choices. Means run over pairs of different *samples* only: a sample with itself (or, across modalities, with its own
caption) would add e^0 to the sum and damp the gradient; the paper's in-modal formula has the diagonal in it, its code does
not. And the mean over pairs replaces the paper's prefactor 1/N, a constant difference.

Shapes: B global batch, d embedding width.

Example:
    >>> uniformity(torch.eye(3), torch.arange(3))               # three orthogonal rows: log e^-4
    tensor(-4.)
"""

from __future__ import annotations

from torch import Tensor

from pipeline.losses.reference.masks import apart, log_mean_exp


def alignment(image_Bd: Tensor, text_Bd: Tensor) -> Tensor:
    """``mean_i ||image_i - text_i||^2 = 2 - 2 mean cos`` (Wang and Isola 2020, alpha = 2; L_Align of Fahim et al. 2024).

    Pulls each pair together, with no counterforce. Unit rows [B, d]; 0-dim in [0, 4]: 0 coincident, 2 orthogonal, 4 opposite.
    There is nothing to mask: it knows positives only.
    """
    return (image_Bd - text_Bd).square().sum(dim=1).mean()


def uniformity(x_Bd: Tensor, group_B: Tensor, t: float = 2.0) -> Tensor:
    """``log mean_{i,j : group_i != group_j} exp(-t ||x_i - x_j||^2)`` within one modality (L_Uniform of Fahim et al. 2024).

    Spreads the embeddings over the sphere. Ordered or unordered pairs give the same mean.

    Args:
        x_Bd: unit rows [B, d].
        group_B: int64 [B]; pairs of one group are left out, else true duplicates would be driven apart.
        t: sharpness, 2 in both papers.

    Returns:
        0-dim in [-4t, 0]: 0 collapsed, -4 + 8/d + O(1/d^2) for uniformly random rows at t = 2, -2t - 2t/(B-1) at a simplex.
        0 where no two samples differ in group.
    """
    return cross_uniformity(x_Bd, x_Bd, group_B, t)


def cross_uniformity(image_Bd: Tensor, text_Bd: Tensor, group_B: Tensor, t: float = 2.0) -> Tensor:
    """``log mean_{i,j : group_i != group_j} exp(-t ||image_i - text_j||^2)`` (L_XUniform of Fahim et al. 2024).

    Drives every image away from the texts of others, softly and regardless of how near its own text is. Arguments, limits and
    range as in ``uniformity``; symmetric in its two modalities.
    """
    return log_mean_exp(2 * t * (image_Bd @ text_Bd.T - 1), apart(group_B))
