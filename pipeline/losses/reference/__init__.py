"""THE SPECIFICATION of every loss: the obvious formula, on the whole batch, in one process, in any dtype.

Nothing here is fast, distributed, or clever; it is what the training path is tested against, in value and in gradient.
One file per paper, to be read beside it; where a paper leaves something open, the docstring says which choice is made.

    clip.py        InfoNCE, SigLIP, captioning
    uniclip.py     MP-NCE over several views in several domains, and its rivals MIL-NCE and SupCon
    gap.py         alignment, uniformity, cross-modal uniformity
    structure.py   in-modal contrast, feature separation, Brownian bridge, geometric consistency
    mixup.py       geodesic mixup: m2-, V-, L- and VL-Mix, and the draws they need
    relatives.py   CyCLIP, SimCLR
    masks.py       who is whose negative, and sums over masked entries

Shapes: B global batch, d embedding width, V image views, U text views, K = V + U domains, N = K B.
Four things hold for every term:

- Embeddings are rows of unit length, so a dot product is a cosine. Nothing here normalises.
- ``group_B`` (int64) names what a sample shows. Two samples of one group are never each other's negatives, in any term;
  only the same *sample* (its caption, its other views) is a positive.
- An anchor without negatives contributes 0, and so does a mean over no pairs, so that a batch of one, or of one group, has a
  defined loss and a zero gradient from every repelling term.
- Values and gradients are finite for all unit rows, coincident and opposite ones included.

Example:
    >>> image_Bd = text_Bd = torch.eye(3)
    >>> round(info_nce(image_Bd, text_Bd, torch.tensor(10.0), torch.arange(3)).item(), 6)
    9.1e-05
    >>> round(uniformity(image_Bd, torch.arange(3)).item(), 6)
    -4.0
"""

from pipeline.losses.reference.clip import captioning, info_nce, siglip
from pipeline.losses.reference.gap import alignment, cross_uniformity, uniformity
from pipeline.losses.reference.mixup import (
    derangement_block,
    draw_lambda,
    l_mix,
    m2_mix,
    random_derangement,
    slerp,
    slerp_weights,
    v_mix,
    vl_mix,
)
from pipeline.losses.reference.relatives import cyclip, simclr
from pipeline.losses.reference.structure import (
    REFERENCE_BATCH,
    augmented_consistency,
    brownian_bridge,
    cross_consistency,
    cross_consistency_gram,
    geometric_consistency,
    in_modal_info_nce,
    independent_contrast,
    independent_uniformity,
    intra_consistency,
    intra_consistency_gram,
    orthogonality,
)
from pipeline.losses.reference.uniclip import II, IT, TT, DomainRule, mil_nce, mp_nce, supcon

__all__ = [
    "II",
    "IT",
    "REFERENCE_BATCH",
    "TT",
    "DomainRule",
    "alignment",
    "augmented_consistency",
    "brownian_bridge",
    "captioning",
    "cross_consistency",
    "cross_consistency_gram",
    "cross_uniformity",
    "cyclip",
    "derangement_block",
    "draw_lambda",
    "geometric_consistency",
    "in_modal_info_nce",
    "independent_contrast",
    "independent_uniformity",
    "info_nce",
    "intra_consistency",
    "intra_consistency_gram",
    "l_mix",
    "m2_mix",
    "mil_nce",
    "mp_nce",
    "orthogonality",
    "random_derangement",
    "siglip",
    "simclr",
    "slerp",
    "slerp_weights",
    "supcon",
    "uniformity",
    "v_mix",
    "vl_mix",
]
